"""Who may see whom: floors, doors, and the root package, which is for users only."""

from __future__ import annotations

from .house import (
    FLOORS,
    GROUND,
    NEIGHBOURS,
    PACKAGE,
    PROGRAMS,
    SIGHT,
    Import,
    Module,
    complain,
    is_module,
    is_package,
    package_modules,
    room_of,
)

_FLOOR = {room: number for number, rooms in enumerate(FLOORS, 1) for room in rooms}
_FLOOR |= dict.fromkeys(GROUND, 0)


def _inner_imports() -> list[tuple[Module, Import]]:
    """Give imports of the package by its own modules; the root's own ones are its purpose."""
    return [
        (module, found)
        for module in package_modules()
        if module.room
        for found in module.imports
        if found.module.partition(".")[0] == PACKAGE
    ]


def _may_see(room: str, other: str) -> bool:
    if room == other or (room, other) in NEIGHBOURS:
        return True
    if room in SIGHT and other not in SIGHT[room]:
        return False
    if _FLOOR[room] == _FLOOR[other] == 0:
        return GROUND.index(other) < GROUND.index(room)
    return _FLOOR[other] < _FLOOR[room]


def test_every_room_has_a_floor() -> None:
    """Each module and package directly below the root is listed on a floor."""
    offenders = [m.shown for m in package_modules() if m.room and m.room not in _FLOOR]
    complain("every room has a floor in tests/tidy/house.py", offenders)


def test_imports_point_strictly_down() -> None:
    """A room imports only rooms of lower floors; on the ground, only those to its left."""
    offenders = []
    for module, found in _inner_imports():
        other = room_of(found.reached)
        if module.room not in _FLOOR or (other and other not in _FLOOR):
            continue  # the test above complains
        if other and not _may_see(module.room, other):
            offenders.append(f"{module.shown}:{found.line}: {module.room} must not see {other}")
    complain("imports point strictly down, rooms on a floor do not see each other", offenders)


def test_rooms_are_entered_by_the_door() -> None:
    """What another room needs is imported from the room itself, never from a module inside it."""
    offenders = []
    for module, found in _inner_imports():
        other = room_of(found.reached)
        if not other or other == module.room or not is_package(f"{PACKAGE}.{other}"):
            continue
        if found.reached != f"{PACKAGE}.{other}":
            offenders.append(f"{module.shown}:{found.line}: {found.reached}")
    complain("import from another room's door, never from a module inside it", offenders)


def test_neighbours_inside_a_room_are_named_relatively() -> None:
    """Inside a room it is `from .x import y`; across rooms it is the absolute name of the door."""
    offenders = []
    for module, found in _inner_imports():
        if not is_package(f"{PACKAGE}.{module.room}"):
            continue
        inside = room_of(found.reached) == module.room
        if inside != (found.level > 0):
            offenders.append(f"{module.shown}:{found.line}: {found.module} {found.name}".rstrip())
    complain("relative imports inside a room, absolute ones between rooms", offenders)


def test_programs_are_started_and_never_imported() -> None:
    """Importing a program would run it, or at least its imports, in the wrong process."""
    offenders = [
        f"{module.shown}:{found.line}: {found.reached}"
        for module, found in _inner_imports()
        if found.reached in PROGRAMS
    ]
    complain("a program is started, never imported", offenders)


def test_nobody_inside_imports_the_root_package() -> None:
    """The root package is the users' door: its parts import modules from it, never names."""
    offenders = []
    for module, found in _inner_imports():
        names_module = found.name and is_module(f"{PACKAGE}.{found.name}")
        if found.module == PACKAGE and not names_module:
            offenders.append(f"{module.shown}:{found.line}: {found.name or PACKAGE}")
    complain("nobody inside imports names from the root package", offenders)
