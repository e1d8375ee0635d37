"""A stand-in for gradio that records a page: which components it has, and which events run what.

It draws nothing. With it a page is built where gradio is not installed, its handlers are called as gradio would call
them, and what they give is compared in number with their outputs.
"""

import inspect
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, get_type_hints

EVENTS = "click submit input select blur change upload tick unload load".split()
LAYOUT = "Row Column Tab Tabs Accordion Blocks".split()
COMPONENTS = (
    "HTML Markdown Textbox Button UploadButton Slider Number Checkbox Radio Dropdown Gallery Image ImageEditor State "
    "Timer Dataset"
).split()


class Error(Exception):
    def __init__(self, message: str, visible: bool = True, print_exception: bool = True):
        super().__init__(message)
        self.visible = visible


class Request:
    """Attributes: session_hash, query_params, headers."""

    def __init__(self, session_hash: str = "me", query: dict | None = None, headers: dict | None = None):
        self.session_hash, self.query_params, self.headers = session_hash, query or {}, headers or {}


@dataclass
class SelectData:
    index: Any
    value: Any = None


@dataclass
class Event:
    """One listener: `fn` from the values of `inputs` to those of `outputs`."""

    page: "Page"
    fn: Any
    inputs: list
    outputs: list
    options: dict[str, Any]
    trigger: str = ""

    def then(self, fn, inputs=None, outputs=None, **options) -> "Event":
        return self.page.listen(fn, inputs, outputs, options, "then")

    def call(self, *values, request: Request | None = None, selected: Any = None) -> list[tuple]:
        """All answers, each as a tuple of as many values as there are outputs."""
        hints, given = get_type_hints(self.fn), list(values)
        special = {Request: request or Request(), SelectData: SelectData(selected)}
        for i, name in enumerate(inspect.signature(self.fn).parameters):
            if hints.get(name) in special:
                given.insert(i, special[hints[name]])
        answer = self.fn(*given)
        answers = answer if inspect.isgenerator(answer) else [answer]
        return [one if len(self.outputs) > 1 else (one,) for one in answers]


@dataclass
class Page:
    """What was built."""

    events: list[Event] = field(default_factory=list)
    components: list[Any] = field(default_factory=list)

    def listen(self, fn, inputs, outputs, options, trigger) -> Event:
        def listed(one):
            return [] if one is None else list(one) if isinstance(one, list | tuple) else [one]

        event = Event(self, fn, listed(inputs), listed(outputs), options, trigger)
        self.events.append(event)
        return event

    def named(self, api_name: str) -> Event:
        (event,) = [event for event in self.events if event.options.get("api_name") == api_name]
        return event

    def of(self, kind: str, label: str) -> Any:
        """The first component of a kind with this label, or with this text on it."""
        found = [one for one in self.components if one.kind == kind and label in (one.label, one.value)]
        return found[0]

    def from_(self, component: Any, trigger: str) -> list[Event]:
        return [event for event in self.events if event.trigger == f"{id(component)} {trigger}"]


class Component:
    def __init__(self, *values: Any, **options: Any):
        self.kind, self.options = type(self).__name__, options
        self.value = options.get("value", values[0] if values else None)
        self.label = options.get("label")
        self.preprocess = lambda sent: sent
        PAGES[-1].components.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass


PAGES: list[Page] = [Page()]


def _listener(name: str):
    class Bound:
        def __get__(self, component, owner=None):
            def listen(fn, inputs=None, outputs=None, **options) -> Event:
                return PAGES[-1].listen(fn, inputs, outputs, options, f"{id(component)} {name}")

            listen.trigger = f"{id(component)} {name}"  # type: ignore[attr-defined]
            return listen

    return Bound()


for _event in EVENTS:
    setattr(Component, _event, _listener(_event))


def on(triggers, fn, inputs=None, outputs=None, **options) -> Event:
    named = " or ".join(each.trigger for each in triggers) if triggers else "load"
    return PAGES[-1].listen(fn, inputs, outputs, options, named)


def update(**options: Any) -> dict[str, Any]:
    return {"__type__": "update", **options}


def module() -> ModuleType:
    """The stand-in as a module named gradio."""
    made = ModuleType("gradio")
    classes = {name: type(name, (Component,), {}) for name in [*LAYOUT, *COMPONENTS]}
    plain = {name: lambda *values, **options: None for name in ("Brush", "Eraser", "LayerOptions", "Examples")}
    own = {"on": on, "update": update, "Error": Error, "Request": Request, "SelectData": SelectData}
    vars(made).update(classes | plain | own)
    return made


@contextmanager
def recorded():
    """The page of the demo on the stand-in: gives `ldm.apps.demo.page`'s modules a gradio, and what is built."""
    ours = [name for name in sys.modules if name.startswith("ldm.apps.demo.page") or name == "ldm.apps.demo.ui"]
    before = {name: sys.modules.pop(name) for name in [*ours, "gradio"] if name in sys.modules}
    starlette = {name: sys.modules.get(name) for name in ("starlette", "starlette.middleware")}
    sys.modules["gradio"] = module()
    sys.modules["starlette"], middleware = ModuleType("starlette"), ModuleType("starlette.middleware")
    vars(middleware)["Middleware"] = object
    sys.modules["starlette.middleware"] = middleware
    PAGES.append(Page())
    try:
        yield PAGES[-1]
    finally:
        PAGES.pop()
        for name in [*sys.modules]:
            if name.startswith("ldm.apps.demo.page") or name in ("ldm.apps.demo.ui", "gradio"):
                del sys.modules[name]
        for name, was in {**starlette, **before}.items():
            sys.modules.pop(name, None)
            if was is not None:
                sys.modules[name] = was
