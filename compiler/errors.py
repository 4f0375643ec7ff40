"""One class for each thing users of the compiler get wrong."""


class CompilerError(Exception):
    """Base of every error raised on purpose by `compiler`."""


class TraceError(CompilerError, TypeError):
    """A function could not be traced on the sample inputs."""


class InputMismatchError(CompilerError, ValueError):
    """A program was given inputs it cannot take."""


class VariablesMismatchError(CompilerError, ValueError):
    """A program was given variables that are not shaped like its own."""


class VerifyError(CompilerError, AssertionError):
    """A pass returned a graph that is not well-formed or computes something else."""


class RuleError(CompilerError, TypeError):
    """A rewriting rule returned something that cannot stand for the equation."""


class UnknownPathError(CompilerError, LookupError):
    """A rule's glob names no leaf of the program."""


class NonFiniteWeightsError(CompilerError, ValueError):
    """A weight that should be rounded is infinite or not a number."""


class ArtifactError(CompilerError, ValueError):
    """A saved program is damaged, not one of ours, or cannot be written."""


class PatternError(CompilerError, ValueError):
    """A pattern cannot be traced, or is nothing that could be found in a program."""


class PatternNotFoundError(CompilerError, LookupError):
    """A pattern that had to be replaced stands nowhere in the program."""


class CompileError(CompilerError, RuntimeError):
    """A program cannot be compiled as asked, or not run on this machine."""


class UnknownPartError(CompilerError, ValueError):
    """A pass was told to do a part of its work that it does not have."""


class FormatError(CompilerError, ValueError):
    """A program was to be drawn in a format nobody knows."""


class MissingExtraError(CompilerError, ImportError):
    """A package is needed that comes with an extra which is not installed."""


class CoverageError(CompilerError, ValueError):
    """Less of a program could be quantized than was asked for."""


class CalibrationError(CompilerError, ValueError):
    """Activations were not measured, or what was measured cannot be used."""


class ConversionError(CompilerError, TypeError):
    """A program was to be converted that is not in training for few bits."""


class BudgetError(CompilerError, ValueError):
    """A budget of bytes or time is smaller than what a program can be made to take."""


class PlanError(CompilerError, ValueError):
    """A plan of what is pruned is malformed, or does not fit what it is applied to."""


class TapError(CompilerError, ValueError):
    """A value inside a program cannot be handed out."""


class DistillError(CompilerError, ValueError):
    """A student and its teacher do not fit each other, or a loss that compares them."""
