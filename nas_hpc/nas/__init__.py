"""Neural architecture search: spaces of architectures, problems, Keras models, and the run function that
trains them. Nothing here loads Keras before a model is built.
"""

from nas_hpc.nas.architecture import Architecture
from nas_hpc.nas.nodes import ConstantNode, MimeNode, MirrorNode, VariableNode
from nas_hpc.nas.objective import Objective
from nas_hpc.nas.problem import NaProblem, load_na_problem
from nas_hpc.nas.space import SearchSpace, check_space

__all__ = [
    "Architecture", "ConstantNode", "MimeNode", "MirrorNode", "NaProblem", "Objective", "SearchSpace",
    "VariableNode", "check_space", "load_na_problem",
]  # fmt: skip
