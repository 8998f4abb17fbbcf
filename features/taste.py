"""What a person says they like and dislike, beside what they do."""

from dataclasses import dataclass, replace

from features.errors import InputError

Id = int | str

MOST = 1000
"""Entries in each of the lists."""


@dataclass(frozen=True, slots=True)
class Taste:
    """Likes and dislikes of one person, the latest last."""

    liked_items: tuple[Id, ...] = ()
    disliked_items: tuple[Id, ...] = ()
    liked_categories: tuple[str, ...] = ()
    disliked_categories: tuple[str, ...] = ()
    liked_at: tuple[int, ...] = ()
    """When each of `liked_items` was first said to be liked, Unix time, ms, ascending; () where that is not known."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            InputError: something is said twice, on both sides, or more than `MOST` times.
        """
        for liked, disliked, what in (
            (self.liked_items, self.disliked_items, "items"),
            (self.liked_categories, self.disliked_categories, "categories"),
        ):
            both = [name for name in liked if name in set(disliked)]
            if both:
                raise InputError(f"{what}: {both[0]!r} is both liked and disliked; say one of them")
            for side, names in (("liked", liked), ("disliked", disliked)):
                if len(set(names)) < len(names):
                    twice = next(name for place, name in enumerate(names) if name in names[:place])
                    raise InputError(f"{side}_{what}: {twice!r} is there twice; say it once")
                if len(names) > MOST:
                    raise InputError(f"{side}_{what}: {len(names)} are too many; send at most {MOST}")
        if self.liked_at and len(self.liked_at) != len(self.liked_items):
            raise InputError(
                f"liked_at has {len(self.liked_at)} times for {len(self.liked_items)} items; give one for each or none"
            )

    def __bool__(self) -> bool:
        """Whether anything is said."""
        return any((self.liked_items, self.disliked_items, self.liked_categories, self.disliked_categories))

    def said_after(self, before: "Taste", now: int) -> "Taste":
        """The same with times: what was liked `before` keeps its own, what is new was liked `now`, Unix time, ms."""
        known = dict(zip(before.liked_items, before.liked_at, strict=bool(before.liked_at)))
        times = {item: known.get(item, now) for item in self.liked_items}
        items = sorted(self.liked_items, key=times.__getitem__)
        return replace(self, liked_items=tuple(items), liked_at=tuple(times[item] for item in items))


NOTHING = Taste()
"""Of somebody who has said nothing."""
