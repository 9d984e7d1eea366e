"""What spark-submit runs: the loader, wherever the image has it installed."""

import runpy

runpy.run_module("services.delta_loader", run_name="__main__", alter_sys=True)
