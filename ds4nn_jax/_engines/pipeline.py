"""How numba compiles the functions of a kernel: each once, and LLVM only all together.

By itself numba optimises every function and writes its machine code, and optimises it
again within each of its callers. None of these functions is called from Python: they
are linked into their kernel as they are, which is then optimised as a whole.
"""

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import LoweringPass, register_pass
from numba.core.typed_passes import AnnotateTypes
from numba.core.untyped_passes import InlineClosureLikes


class _Unoptimized(JITCodeLibrary):
    """LLVM code to be linked into other code: it has no address of its own."""

    def _optimize_functions(self, ll_module):
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalized = True

    def get_pointer_to_function(self, name):
        self._ensure_finalized()
        return 0

    @property
    def codegen(self):
        return self

    def set_env(self, name, environment):
        """Does nothing: only calls from Python need an environment."""


@register_pass(mutates_CFG=False, analysis_only=True)
class _Unfinished(LoweringPass):
    """Chooses the library that a function is lowered into."""

    _name = "ds4nn_jax_unfinished"

    def __init__(self):
        super().__init__()

    def run_pass(self, state):
        codegen = state.targetctx.codegen()
        state.library = _Unoptimized(codegen, state.func_id.func_qualname)
        state.library.enable_object_caching()
        return False


class Linked(CompilerBase):
    """What `njit` takes as its `pipeline_class`."""

    def define_pipelines(self):
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        # Kernels have no closures; looking for them takes as long as a small function.
        passes.passes = [p for p in passes.passes if p[0] is not InlineClosureLikes]
        passes.add_pass_after(_Unfinished, AnnotateTypes)
        passes.finalize()
        return [passes]
