"""Do early norms predict the better target? What the first updates of `all_linear` say, and which arm won.

    python scripts/early_norms.py SWEEP        # the folder that `ghosttune sweep docs/studies/modules.yaml` wrote

Printed per seed: the root of the summed squares of the effective norms of each group in the first ten updates, how many
modules that are, and the dev loss of the arms that train one group alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ghosttune import open_run
from ghosttune.run.tables import read_table

FIRST = 10
GROUPS = ("attention", "mlp")


def main() -> None:
    runs = Path(sys.argv[1]) / "runs"
    for folder in sorted((runs / "all_linear").iterdir()):
        rows = read_table(open_run(folder).folder, "effective").to_pylist()
        early = [row for row in rows if row["step"] <= FIRST]
        norms = {g: sum(row["effective_norm"] ** 2 for row in early if row["group"] == g) ** 0.5 for g in GROUPS}
        modules = {g: len({row["module"] for row in early if row["group"] == g}) for g in GROUPS}
        losses = {g: open_run(runs / g / folder.name).record["verdict"]["dev_loss"] for g in GROUPS}
        larger, better = max(GROUPS, key=norms.__getitem__), min(GROUPS, key=losses.__getitem__)
        shown = ", ".join(f"{g} norm {norms[g]:.3f} ({modules[g]} modules) dev loss {losses[g]:.4f}" for g in GROUPS)
        print(f"{folder.name}: {shown}; larger norm: {larger}, lower loss: {better}")


if __name__ == "__main__":
    main()
