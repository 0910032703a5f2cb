"""The one error that the data package raises."""


class DataError(ValueError):
    """A task, a data source or a sampling request that cannot be served.

    The message names the field, file or class at fault and what is allowed or there instead.
    """
