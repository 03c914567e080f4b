"""The tables of experiments.ablations change what they say they change."""

import pytest

from experiments import ablations


@pytest.mark.parametrize("name", ablations._TABLES)
def test_no_two_rows_of_a_table_are_the_same_run(name):
    table = ablations._TABLES[name]
    configs = [ablations._changed(table.base, row) for row in table.rows.values()]
    assert configs[0] == table.base
    assert len({*configs}) == len(configs)
