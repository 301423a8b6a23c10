"""Whether data give what a method reads, asked before any network is loaded.

A method says in `needs` what it reads in each command; a DataModule says in `gives` what its batches hold there. What
says nothing is tried as it is.
"""

from typing import Any, NamedTuple

from lightning_styles.errors import UserError

EVALUATION = ("validate", "test", "predict")
PHOTOS = ("image", "name", "caption", "index")  # keys of the batches of `datamodules.Pictures`
PROMPTS = ("prompt", "name", "set", "group", "index")  # of `datamodules.Prompts`


class Needs(NamedTuple):
    """What a method reads.

    Attributes:
        batch: keys of a batch.
        data: attributes of the DataModule itself.
    """

    batch: tuple[str, ...] = ()
    data: tuple[str, ...] = ()

    def met_by(self, data: Any, command: str) -> bool:
        """Whether a DataModule, or its class, gives this."""
        held = data.gives.get(command, () if command == "prepare" else None)
        kind = data if isinstance(data, type) else type(data)  # asked first: a property may take long
        has_all = all(hasattr(kind, name) or hasattr(data, name) for name in self.data)
        return held is not None and set(self.batch) <= set(held) and has_all


def check_data(method: Any, data: Any, command: str) -> None:
    """Refuse data that do not give what `command` of `method` reads; of `fit` with metrics also what these read.

    Raises:
        UserError: naming what is read and which DataModules give it.
    """
    commands = [command]
    if command == "fit" and getattr(method, "metrics", None) and "validate" in getattr(data, "gives", {}):
        commands.append("validate")
    for each in commands:
        needs = getattr(method, "needs", {}).get(each)
        if needs is None or (data is not None and not hasattr(data, "gives")):
            continue
        if data is None or not any(need.met_by(data, each) for need in needs):
            raise UserError(_refusal(type(method).__name__, needs, data, each))


def _refusal(method: str, needs: tuple[Needs, ...], data: Any, command: str) -> str:
    import datamodules

    fitting = [
        f"datamodules.{name}"
        for name in datamodules.__all__
        if any(need.met_by(getattr(datamodules, name), command) for need in needs)
    ]
    read = " or else ".join(", ".join((*need.batch, *need.data)) or "any batches" for need in needs)
    way_out = (
        f"set data.class_path to {' or '.join(fitting)}" if fitting else "set data.class_path to data that give it"
    )
    if data is None:
        return f"{method} has no data to {command}: {way_out}."
    held = data.gives.get(command)
    found = f"gives {', '.join(held)}" if held else f"gives nothing to {command}"
    return f"{method} cannot {command} on {type(data).__name__}, which {found}; it reads {read}: {way_out}."
