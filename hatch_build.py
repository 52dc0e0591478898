"""Compiles the sparse kernels into a wheel where there is a C++ compiler; without one, the wheel has none.

An editable installation is left alone: there, as wherever the library is missing, it is compiled at first use.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_BUILD = Path(__file__).parent / "src" / "prunus" / "deploy" / "kernels" / "build.py"


class Kernels(BuildHookInterface):
    """The native library of prunus.deploy.kernels."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say that the wheel fits this platform only; whatever fails leaves a wheel for all of them."""
        if version == "editable" or self.target_name != "wheel" or sys.platform != "linux":
            return
        spec = importlib.util.spec_from_file_location("prunus_kernels_build", _BUILD)
        assert spec is not None and spec.loader is not None
        build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build)
        target = Path(self.root) / "build" / build.PACKAGED.name
        cxx = build.compiler()
        if cxx is None:
            self.app.display_warning("no C++ compiler: the wheel comes without sparse kernels (compiled at first use)")
            return
        try:
            build.build(target, cxx)
        except (OSError, build.BuildError) as error:
            self.app.display_warning(f"the sparse kernels could not be compiled and are left out: {error}")
            return
        build_data["force_include"][str(target)] = f"prunus/deploy/kernels/native/{build.PACKAGED.name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{re.sub(r'[-.]', '_', sysconfig.get_platform())}"
