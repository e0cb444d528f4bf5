"""The one exception family for mistakes a user can make.

Library code raises `UserError` (or a subclass) with a message that says what is wrong and what to do about it.
Programs print the message in one line and exit with a non-zero status; everything else is a bug and keeps its
traceback.
"""


class UserError(Exception):
    """Something the user can fix: the message says what is wrong and what to do."""


class InputError(UserError):
    """Frames, masks or poses that cannot be read or do not fit together."""


class CheckpointError(UserError):
    """A checkpoint that is damaged, unsafe, incomplete or of another architecture."""


class ConfigError(UserError):
    """Options that contradict each other or a value outside its range."""


class GradientError(UserError):
    """A requested derivative that is undefined, or that its type cannot represent."""


class OutputError(UserError):
    """A result that cannot be written (permissions, full disk)."""
