"""What people call an advertiser: for the page, where an id alone says nothing."""

from __future__ import annotations

from dataclasses import dataclass

from ranking.service.catalogs import Catalogs


@dataclass(frozen=True)
class Label:
    """Text for people, and the id behind it where that is another text."""

    text: str
    id: str = ""


class Names:
    """Labels of advertisers, by the catalogs that were published with priors.

    Parameters
    ----------
    catalogs : Catalogs
        Of the engine; names are looked up when they are shown, so that a newer catalog's count.
    """

    def __init__(self, catalogs: Catalogs) -> None:
        self._catalogs = catalogs

    def label(self, advertiser: str) -> Label:
        """An advertiser's name with its id beside it; the id alone where no catalog names it."""
        name = self._catalogs.name_of(advertiser)
        return Label(advertiser) if name is None or name == advertiser else Label(name, advertiser)
