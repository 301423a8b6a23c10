"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """A mistake that the user can mend: shown as one message without a traceback, exit code 1.

    The text says what was found, what was expected and what to do.
    """
