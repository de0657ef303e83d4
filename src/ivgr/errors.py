"""The one exception for what a user can mend; `ivgr` prints it as a single line."""


class UserError(Exception):
    """Bad input: the message names the file or key, what is wrong, and the mend."""
