"""The rules of all operators; importing this package registers them."""

from prunus.pruning.structured.rules import joins, normalization, parts, products, recurrent  # noqa: F401
from prunus.pruning.structured.rules.convolutions import KERNEL as KERNEL
from prunus.pruning.structured.rules.convolutions import removes_whole_groups as removes_whole_groups
from prunus.pruning.structured.rules.elementwise_rules import elementwise as elementwise
from prunus.pruning.structured.rules.joins import GENERATORS as GENERATORS
from prunus.pruning.structured.rules.registry import MOVING as MOVING
from prunus.pruning.structured.rules.registry import RULES as RULES
from prunus.pruning.structured.rules.registry import UnsupportedCall as UnsupportedCall
