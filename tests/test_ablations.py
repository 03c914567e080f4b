"""The tables of experiments.ablations change what they say they change."""

import dataclasses

import pytest

from experiments import ablations


@pytest.mark.parametrize("name", ablations._TABLES)
def test_no_two_rows_of_a_table_are_the_same_run(name):
    table = ablations._TABLES[name]
    configs = {
        what: dataclasses.replace(table.base, **change) for what, change in table.rows
    }
    assert len(configs) == len(table.rows)
    assert len({*configs.values()}) == len(configs)
    assert table.base in configs.values()
