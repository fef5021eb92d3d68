"""Ways around slow spots of XLA's CPU compiler: nothing here changes what is computed; accelerators use none of it.

Each file says which bug it goes around, which row of ``python -m benchmarks.canary`` shows it, and when it may go.
"""

from jaxmargin.xla_cpu.backend import on_cpu
from jaxmargin.xla_cpu.convolution import conv_general_dilated, max_pool
from jaxmargin.xla_cpu.rewriting import loopable

__all__ = ["conv_general_dilated", "loopable", "max_pool", "on_cpu"]
