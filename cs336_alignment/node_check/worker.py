"""One process of a check; launch.py starts it under torchrun.

    torchrun ... -m cs336_alignment.node_check.worker MODULE:FUNCTION ANSWER SETTING

Each rank writes what came of it to ANSWER.<rank>.
"""

import json
import os
import sys
from importlib import import_module
from pathlib import Path

from cs336_alignment.node_check.outcome import CheckFailedError, Setting
from cs336_alignment.ranks import failing_together, leave_peers
from cs336_alignment.run_folder import write_json


def main() -> None:
    place, answer, told = sys.argv[1:]
    module, _, name = place.partition(":")
    setting = json.loads(told)
    setting = Setting(**{**setting, "output": Path(setting["output"])})
    path = Path(f"{answer}.{os.environ['RANK']}")
    with failing_together():
        try:
            write_json(path, {"figures": getattr(import_module(module), name)(setting)})
        except Exception as error:
            own = error if isinstance(error, CheckFailedError) else CheckFailedError(f"{type(error).__name__}: {error}")
            write_json(path, {"problem": str(own), "to_type": own.to_type, "figures": own.figures})
            raise
        leave_peers()


if __name__ == "__main__":
    main()
