"""Model families. To add one, write its file beside these and name it in `registry.FAMILIES`."""
