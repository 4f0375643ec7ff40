"""Values inside programs, and losses that bring a student close to its teacher."""

from compiler.distill.distill import distill as distill
from compiler.distill.distillation import Distillation as Distillation
from compiler.distill.match import Match as Match
from compiler.distill.recover import Recovered as Recovered
from compiler.distill.recover import fine_tune as fine_tune
from compiler.distill.recover import fine_tuner as fine_tuner
from compiler.distill.recover import recover as recover
from compiler.distill.tap import Tap as Tap
from compiler.distill.tap import tap as tap
