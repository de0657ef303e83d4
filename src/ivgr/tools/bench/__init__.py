"""`ivgr bench`: how fast a phase is, with the prefix shared and without."""
