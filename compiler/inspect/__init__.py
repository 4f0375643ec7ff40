"""Seeing: before and after, as numbers and as a picture."""

from compiler.inspect.profile import Profile as Profile
from compiler.inspect.profile import profile as profile
from compiler.inspect.report import Report as Report
from compiler.inspect.report import report as report
from compiler.inspect.show import View as View
from compiler.inspect.show import show as show
from compiler.inspect.summary import summary as summary
