"""By which paths a directory makes its user's machine run code, or trust what is in it.

`apply` holds them back: a sandbox that may write a git hook has left the sandbox. The list is data;
a path fits if its last names are those of an entry, at any depth and in any case of letters, or if
it lies below such a path. (pure)

What a user runs on purpose (a Makefile, package.json, tests) is not here: it is what is worked on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import msgspec

from sandboxsdk.errors import UsageError


class HeldPath(msgspec.Struct, frozen=True):
    """A path that is held back, with what would run it."""

    path: str
    why: str


HELD_PATHS = (
    HeldPath(".git/config", "git runs programs that it names: pagers, fsmonitor, aliases, filters"),
    HeldPath(".git/hooks", "git runs what is in it"),
    HeldPath(".git/info/attributes", "says which filters git runs"),
    HeldPath(".git/modules", "repositories of submodules, each with its config and hooks"),
    HeldPath(".git/worktrees", "leads git to other directories and their config"),
    HeldPath(".git/objects/info/alternates", "leads git to objects elsewhere"),
    HeldPath(".git/rebase-merge", "git goes on with the commands that are in it"),
    HeldPath(".git/rebase-apply", "git goes on with the commands that are in it"),
    HeldPath(".git/sequencer", "git goes on with the commands that are in it"),
    HeldPath("commondir", "makes a git repository of its directory, with the config of another"),
    HeldPath("config.worktree", "git reads it like a config"),
    HeldPath(".gitmodules", "git runs and fetches what it names when submodules are updated"),
    HeldPath(".jj/repo", "jj reads its config from it"),
    HeldPath(".hg/hgrc", "Mercurial runs the hooks and extensions that it names"),
    HeldPath(".hg/hgrc-not-shared", "Mercurial reads it like .hg/hgrc"),
    HeldPath(".hg/sharedpath", "leads Mercurial to another directory and its config"),
    HeldPath(".svn", "Subversion keeps its own state in it"),
    HeldPath(".husky", "git hooks"),
    HeldPath(".pre-commit-config.yaml", "git hooks"),
    HeldPath(".lefthook.yml", "git hooks"),
    HeldPath("lefthook.yml", "git hooks"),
    HeldPath("lefthook.yaml", "git hooks"),
    HeldPath("lefthook-local.yml", "git hooks"),
    HeldPath("lefthook-local.yaml", "git hooks"),
    HeldPath(".overcommit.yml", "git hooks"),
    HeldPath(".vscode", "editors run its tasks, debuggers and interpreters"),
    HeldPath("*.code-workspace", "editors run its tasks and settings"),
    HeldPath(".helix", "editors run its language servers"),
    HeldPath(".emacs.d", "emacs evaluates it where a directory is a home"),
    HeldPath(".config/nvim", "nvim runs it where a directory is a home"),
    HeldPath(".idea", "editors run its configurations"),
    HeldPath(".zed", "editors run its tasks and language servers"),
    HeldPath(".fleet", "editors run its configurations"),
    HeldPath(".vs", "editors run its configurations"),
    HeldPath(".devcontainer", "editors run its commands, also on the host"),
    HeldPath(".devcontainer.json", "editors run its commands, also on the host"),
    HeldPath(".exrc", "vi runs it when it starts in the directory"),
    HeldPath(".vimrc", "vim may run it when it starts in the directory"),
    HeldPath(".lvimrc", "vim may run it when it starts in the directory"),
    HeldPath(".nvimrc", "nvim runs it when it starts in the directory"),
    HeldPath(".nvim.lua", "nvim runs it when it starts in the directory"),
    HeldPath(".dir-locals.el", "emacs evaluates it"),
    HeldPath(".dir-locals-2.el", "emacs evaluates it"),
    HeldPath(".gdbinit", "gdb runs it"),
    HeldPath(".pdbrc", "Python's debugger runs it"),
    HeldPath(".Rprofile", "R runs it when it starts in the directory"),
    HeldPath(".irbrc", "Ruby's shell runs it"),
    HeldPath(".pryrc", "Ruby's shell runs it"),
    HeldPath(".ghci", "Haskell's shell runs it"),
    HeldPath(".iex.exs", "Elixir's shell runs it"),
    HeldPath(".lldbinit", "lldb runs it"),
    HeldPath(".envrc", "direnv runs it in the user's shell"),
    HeldPath(".autoenv.zsh", "autoenv runs it in the user's shell"),
    HeldPath(".autoenv", "autoenv runs it in the user's shell"),
    HeldPath("mise.toml", "mise sets environments and runs hooks from it"),
    HeldPath(".mise.toml", "mise sets environments and runs hooks from it"),
    HeldPath("mise.local.toml", "mise sets environments and runs hooks from it"),
    HeldPath("mise/config.toml", "mise sets environments and runs hooks from it"),
    HeldPath(".config/mise", "mise sets environments and runs hooks from it"),
    HeldPath(".mise", "mise sets environments and runs hooks from it"),
    HeldPath(".tool-versions", "says which programs shims run"),
    HeldPath(".bashrc", "shells run it where a directory is a home"),
    HeldPath(".bash_profile", "shells run it where a directory is a home"),
    HeldPath(".profile", "shells run it where a directory is a home"),
    HeldPath(".zshrc", "shells run it where a directory is a home"),
    HeldPath(".zprofile", "shells run it where a directory is a home"),
    HeldPath(".zlogin", "shells run it where a directory is a home"),
    HeldPath(".bash_login", "shells run it where a directory is a home"),
    HeldPath(".zshenv", "shells run it where a directory is a home"),
    HeldPath(".ssh", "says who may log in where a directory is a home"),
    HeldPath(".config/autostart", "desktops run it where a directory is a home"),
    HeldPath(".config/systemd", "systemd runs it where a directory is a home"),
    HeldPath(".config/fish", "shells run it where a directory is a home"),
    HeldPath(".config/git", "git reads it where a directory is a home"),
    HeldPath(".gitconfig", "git reads it where a directory is a home"),
    HeldPath(".cargo/config", "cargo runs the linkers and wrappers that it names"),
    HeldPath(".cargo/config.toml", "cargo runs the linkers and wrappers that it names"),
    HeldPath("rust-toolchain", "may name the directory of the compiler that runs"),
    HeldPath("rust-toolchain.toml", "may name the directory of the compiler that runs"),
    HeldPath(".bazelrc", "bazel takes options from it"),
    HeldPath(".npmrc", "npm takes its registry, shell and scripts from it"),
    HeldPath(".yarnrc", "yarn runs the program that it names in place of itself"),
    HeldPath(".yarnrc.yml", "yarn runs the program that it names in place of itself"),
    HeldPath(".yarnrc.yaml", "yarn runs the program that it names in place of itself"),
    HeldPath(".yarn/releases", "yarn runs it in place of itself"),
    HeldPath(".yarn/plugins", "yarn runs them"),
    HeldPath(".pnpmfile.cjs", "pnpm runs it at every install"),
    HeldPath(".pnpmfile.mjs", "pnpm runs it at every install"),
    HeldPath("pip.conf", "pip takes its index from it"),
    HeldPath(".pypirc", "uploads go where it says"),
    HeldPath(".mvn", "maven runs its extensions and options"),
    HeldPath(".mcp.json", "agents start the servers that it names"),
    HeldPath("mcp.json", "agents start the servers that it names"),
    HeldPath(".claude", "agents run its hooks and commands"),
    HeldPath(".claude.json", "agents start the servers that it names"),
    HeldPath(".cursor", "agents run its hooks and start its servers"),
    HeldPath(".windsurf", "agents run its hooks and start its servers"),
    HeldPath(".codex", "agents run its hooks and start its servers"),
    HeldPath(".gemini", "agents run its hooks and start its servers"),
    HeldPath(".opencode", "agents run its plugins and start its servers"),
    HeldPath("opencode.jsonc", "agents start the servers that it names"),
    HeldPath(".crush.json", "agents start the servers that it names"),
    HeldPath(".qwen", "agents run its hooks and start its servers"),
    HeldPath(".amazonq", "agents run its hooks and start its servers"),
    HeldPath(".clinerules", "agents run its hooks"),
    HeldPath(".github/hooks", "agents run its hooks"),
    HeldPath("opencode.json", "agents start the servers that it names"),
    HeldPath(".kiro", "agents run its hooks and start its servers"),
    HeldPath(".continue", "agents start the servers that it names"),
    HeldPath(".aider.conf.yml", "agents run the commands that it names"),
    HeldPath(".roo", "agents start the servers that it names"),
)

# What of a bare git repository runs code, and what makes one of a directory that has these.
_CONFIG = frozenset(("config", "hooks"))
_HEAD = "head"
_ENTRIES = frozenset(tuple(held.path.casefold().split("/")) for held in HELD_PATHS)
_SUFFIXES = tuple(path[-1][1:] for path in _ENTRIES if path[-1].startswith("*"))
_LENGTH_MAX = max(map(len, _ENTRIES))


def is_held(
    names: tuple[str, ...], *, is_directory: bool, beside: Callable[[], Collection[str]]
) -> bool:
    """Say whether a path runs code on the host, if one wrote it.

    Args:
        names: of the path, from the root on; what lies below a held path is for the caller, who
            asks on the way down.
        beside: gives all names that its directory has, had or will have. git takes any directory
            for a repository that looks like one.
    """
    folded = tuple(_folded(name) for name in names)
    if folded[-1] == ".git" and not is_directory:
        # A file or link of this name leads git to any directory, and its config.
        return True
    if any(folded[-length:] in _ENTRIES for length in range(1, _LENGTH_MAX + 1)):
        return True
    if folded[-1].endswith(_SUFFIXES):
        return True
    inside = folded[-2:-1] == (".git",)
    if folded[-1] in _CONFIG:
        return _HEAD in {_folded(name) for name in beside()}
    # In .git itself the config is held, and a head is what work changes.
    return folded[-1] == _HEAD and not inside and not _CONFIG.isdisjoint(map(_folded, beside()))


def check_allow(allow: object) -> tuple[tuple[str, ...], ...]:
    """Give the paths that are let through, each as its names.

    Raises:
        UsageError: it is no list of relative paths.
    """
    hint = 'pass a list of paths such as [".vscode", "lib/.envrc"]'
    if isinstance(allow, str | bytes) or not isinstance(allow, Iterable):
        raise UsageError(what="allow", value=allow, reason="is no list of paths", hint=hint)
    checked = []
    for path in allow:
        names = tuple(path.strip("/").split("/")) if isinstance(path, str) else ()
        if not names or any(name in ("", ".", "..") for name in names):
            raise UsageError(what="allow", value=path, reason="is no relative path", hint=hint)
        checked.append(names)
    return tuple(checked)


def is_allowed(names: tuple[str, ...], allow: tuple[tuple[str, ...], ...]) -> bool:
    """Say whether a held path is let through: named in full, by its last names, or by a directory
    above it.
    """
    return any(names[-len(one) :] == one or names[: len(one)] == one for one in allow)


def _folded(name: str) -> str:
    # As file systems that know no case, drop some characters, or have short names would find it.
    ignored = "".join(c for c in name if c not in "\u200c\u200d\u200e\u200f\ufeff")
    found = ignored.partition(":")[0].rstrip(". ").casefold() or name
    return ".git" if found == "git~1" else found
