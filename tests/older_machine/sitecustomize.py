"""Has torch say that the CPU does not compute in bf16, in every process with this folder on PYTHONPATH.

`make test-older` runs the tests so, and with the kernels of an older CPU, whose sums round otherwise.
"""

import sys
from importlib.machinery import PathFinder


class WithoutBf16:
    """Finds `torch.cpu`, and nothing else; torch itself is imported by whoever wants it."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "torch.cpu":
            return None
        spec = PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def execute(module):
            load(module)
            module._is_amx_tile_supported = module._is_avx512_bf16_supported = lambda: False

        spec.loader.exec_module = execute
        return spec


sys.meta_path.insert(0, WithoutBf16)
