"""One class for each thing users get wrong.

Every message has the same form, so that it can be read at a glance:

    path (Kind): what was expected, what came. The fix.

All of them derive from [`MappingError`][] and from the built-in exception a
Python programmer would reach for.
"""


class MappingError(Exception):
    """Base of every error raised on purpose by `mapping`."""


class ShapeMismatchError(MappingError, ValueError):
    """An input does not have the shape the parameters were made for."""


class MissingKeyError(MappingError, ValueError):
    """A mapping needs randomness and the context carries no key."""


class MissingVariablesError(MappingError, ValueError):
    """A mapping was applied without the variables it was initialised with."""


class UnknownPathError(MappingError, LookupError):
    """A path or a glob names no leaf of the tree."""


class FieldError(MappingError, TypeError):
    """A field of a mapping cannot be compared by value (an array, a lambda)."""


class NameCollisionError(MappingError, ValueError):
    """A step's name is taken, or would be read as a path."""


class NotAMappingError(MappingError, TypeError):
    """Something that is neither a mapping nor a function was composed."""


class ProtocolError(MappingError, TypeError):
    """An `init` or `apply` returned something else than the protocol says."""


class NotTrainableError(MappingError, TypeError):
    """Params that have no gradient, such as integers, were to be trained."""


class DataError(MappingError, ValueError):
    """The arrays given to training do not fit together."""


class RegistrationError(MappingError, ValueError):
    """A name is taken, or a registered thing is built without a field it needs."""


class UnknownNameError(MappingError, LookupError):
    """A name, or a field, that nothing is registered under."""


class ConfigError(MappingError, ValueError):
    """Something that cannot be written as JSON, or be read back from it."""


class ConformanceError(MappingError, AssertionError):
    """A mapping does not keep what is promised of every mapping."""


class OutOfRangeError(MappingError, IndexError):
    """A number stands for nothing: a token without a vector, a position too far."""


class MissingDependencyError(MappingError, ImportError):
    """An optional library is needed and not installed."""


class SelectorError(MappingError, TypeError):
    """What is selected by is no glob, type or predicate."""


class MergeError(MappingError, ValueError):
    """Trees that are to be merged hold the same leaf, or have different nodes."""


class LoadError(MappingError, ValueError):
    """Values do not fit the tree they are loaded into; it shows where."""


class GenerationError(MappingError, ValueError):
    """What a text is to be drawn from, or how, makes none: too long, no such number."""
