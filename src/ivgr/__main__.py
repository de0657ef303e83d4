"""The command `ivgr`, also as `python -m ivgr`."""

import os

# Threads that spin while they wait for each other slow a run two- or threefold as soon as another process
# keeps a core busy; threads that never spin slow it by a third when it is alone. GNU's OpenMP spins as
# briefly as it does where threads outnumber cores; others know only whether to spin. Both read this when
# torch is loaded, and leave a policy that the user has set.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from ivgr.cli.main import main

if __name__ == "__main__":
    main()
