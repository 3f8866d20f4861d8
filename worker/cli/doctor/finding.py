"""What `doctor` says of one thing that it looked at. Knows no part."""

from __future__ import annotations

from typing import Literal

import msgspec

Colour = Literal["green", "yellow", "red"]


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at. `remedy` is what to do; empty where there is nothing to do."""

    part: str
    said: str
    remedy: str = ""
    passing: bool = False  # nothing of ours is broken, and it may pass by itself

    @property
    def colour(self) -> Colour:
        """Red needs a person now, yellow a look."""
        if self.passing:
            return "yellow"
        return "red" if self.remedy else "green"

    def told(self) -> dict[str, str]:
        """Return it for programs."""
        return {"colour": self.colour, "part": self.part, "said": self.said, "remedy": self.remedy}
