__version__ = "0.1.0"

from .docstrings import show_parameters_in_help

show_parameters_in_help(__name__)
