"""Syntax: what is changed in the tree of a template before it is compiled.

The filters that are added have names with a space, which no template can call; `sandbox` has them.
"""

from collections.abc import Callable
from typing import Any

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from elm_jax.prompting import limits

SEPARATOR = "|||"
OWN_SEPARATOR = f"\ufdd0{SEPARATOR}\ufdd1"
"""Separates the parts that a template of one's own writes; a separator in a row's text stays what it is."""


class Guards(NodeTransformer):
    """Adds its cost to every loop and macro, a bound to every `~`, and a check to every index."""

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        # An index that is written with its sign is meant to count from the end.
        if not isinstance(node.arg, nodes.Const | nodes.Neg | nodes.Slice):
            node.arg = add_filter(node.arg, "an index")
        return node

    def visit_For(self, node: nodes.For | nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        cost = limits.CHARACTERS_PER_LOOP_TURN + sum(
            len(data.data) for data in node.find_all(nodes.TemplateData)
        )
        turn = add_filter(nodes.Const(cost), "a turn")
        node.body.insert(0, nodes.ExprStmt(turn).set_lineno(node.lineno))
        if isinstance(node, nodes.For) and node.test is not None:  # the body may never be reached
            node.test = nodes.And(turn, node.test)
        return node

    visit_Macro = visit_For

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        parts = [add_filter(part, "string") for part in node.nodes]
        return add_filter(nodes.Concat(parts), "a bounded value").set_lineno(node.lineno)


class OwnTemplate(NodeTransformer):
    """Cuts every value that a template of one's own writes, and writes separators as `OWN_SEPARATOR`.

    Args:
        cut_length: Characters that are kept of a value; 0 keeps all.
    """

    def __init__(self, cut_length: int) -> None:
        self.cut_length = cut_length
        self._separates = True  # whether a separator in a text of the source is one of parts

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [
            part if isinstance(part, nodes.TemplateData) else self._cut(part) for part in node.nodes
        ]
        return node

    def visit_Macro(self, node: nodes.Node) -> nodes.Node:
        """Visits a node whose text is a value, which is cut where it is written."""
        length, self.cut_length = self.cut_length, 0
        self.generic_visit(node)
        self.cut_length = length
        return node

    visit_AssignBlock = visit_Macro

    def visit_FilterBlock(self, node: nodes.FilterBlock) -> nodes.Node:
        self.visit_Macro(node)
        node.filter = self._cut(node.filter)
        return node

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        self.visit_Macro(node)
        if not self.cut_length:
            return node
        # What is called writes its text itself.
        return nodes.FilterBlock([node], self._cut(None)).set_lineno(node.lineno)

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        node.data = node.data.replace(SEPARATOR, OWN_SEPARATOR)
        return node

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        if self._separates and isinstance(node.value, str):
            node.value = node.value.replace(SEPARATOR, OWN_SEPARATOR)
        return node

    def visit_Compare(self, node: nodes.Node) -> nodes.Node:
        return self._visit_plain(node, self.generic_visit)

    visit_Test = visit_Compare

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        node.node = self.visit(node.node)
        node.arg = self._visit_plain(node.arg, self.visit)
        return node

    def visit_Call(self, node: nodes.Call | nodes.Filter) -> nodes.Node:
        """Visits a call of a method or a filter; only some write the texts that they are given."""
        name = node.name if isinstance(node, nodes.Filter) else getattr(node.node, "attr", "join")
        if node.node is not None:
            node.node = self.visit(node.node)
        for part in ("args", "kwargs"):
            given = getattr(node, part)
            writes = name in ("join", "format")
            setattr(
                node,
                part,
                [self.visit(each) if writes else self._visit_plain(each, self.visit) for each in given],
            )
        return node

    visit_Filter = visit_Call

    def _visit_plain(self, node: Any, visit: Callable[[Any], Any]) -> Any:
        """Visits a node in which a separator is any other text."""
        separates, self._separates = self._separates, False
        made = visit(node)
        self._separates = separates
        return made

    def _cut(self, node: nodes.Expr | None) -> Any:
        """Returns a value that is cut; None stands for the text of a block."""
        if not self.cut_length:
            return node
        value = add_filter(node, "string")
        return nodes.Filter(value, "truncate", [nodes.Const(self.cut_length)], [], None, None)


def add_filter(node: nodes.Expr | None, name: str) -> nodes.Filter:
    """Returns a node with a filter around it."""
    return nodes.Filter(node, name, [], [], None, None)


def find_number_columns(tree: nodes.Node) -> set[str]:
    """Returns the names that a template uses as numbers.

    It picks from the choices or another list by them, as in `answer_choices[label]`, compares them with a
    number, or computes with them what texts do not allow.
    """
    found: list[nodes.Node] = []
    for node in tree.find_all(nodes.Getitem):
        is_list = isinstance(node.node, nodes.List)
        if is_list or (isinstance(node.node, nodes.Name) and node.node.name == "answer_choices"):
            found += [node.arg, *node.arg.find_all(nodes.Name)]
    for node in tree.find_all(nodes.Compare):
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        items = [item for side in sides for item in getattr(side, "items", ())]  # `stars in [1, 2]`
        if any(isinstance(each, nodes.Const) and type(each.value) in (int, float) for each in sides + items):
            found += sides
    for node in tree.find_all((nodes.Sub, nodes.Div, nodes.FloorDiv, nodes.Pow)):
        found += [node.left, node.right]
    for node in tree.find_all(nodes.Mul):
        if not any(isinstance(side, nodes.Const) for side in (node.left, node.right)):  # it repeats a text
            found += [node.left, node.right]
    return {name.name for name in found if isinstance(name, nodes.Name)} - {"answer_choices"}
