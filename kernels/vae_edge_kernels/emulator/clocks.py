"""Which accesses within a program are ordered: vector clocks of its warps and of what they do asynchronously.

Time is one count for the whole program, which goes on at every barrier, arrival and completion. An access notes its
time and its agent; it is ordered before what a warp does now if the warp has seen that agent up to a later time.
Agents are columns: the warps, and for each warp the products (`tcgen05.mma`), the loads and the stores of tensor memory
that it has issued, which go on by themselves until a commit or a wait.

After: Flanagan and Freund, "FastTrack: Efficient and Precise Dynamic Race Detection" (2009); the proxy fence: PTX ISA
9.0, "Proxy-preserved base causality order".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vae_edge_kernels.emulator.arithmetic import Array

SEVERAL, NOBODY = -2, -1  # the last two columns
NEVER = np.iinfo(np.int64).max  # a time that every access lies before


@dataclass
class Seen:
    """What a warp has published: up to which times agents are seen, also behind a proxy fence.

    Attributes:
        agents: int64 [columns].
        fenced: int64 [columns]; writes before it are visible to the asynchronous proxy.
        programs: of other programs, int32 [programs] (see `ordering`).
    """

    agents: Array
    fenced: Array
    programs: Array

    def join(self, other: Seen) -> None:
        """Also what the other has seen."""
        np.maximum(self.agents, other.agents, out=self.agents)
        np.maximum(self.fenced, other.fenced, out=self.fenced)
        np.maximum(self.programs, other.programs, out=self.programs)


class Clocks:
    """The clocks of one program.

    Attributes:
        warps: their number.
        columns: of agents, without `SEVERAL` and `NOBODY`.
        time: now.
        seen: int64 [warps, columns + 2]: the time before which a agent's accesses are ordered before the warp's next.
            A warp's own are always; `SEVERAL` stands for any other warps.
        fenced: the same of writes that the asynchronous proxy then sees.
        known: int32 [warps, programs]: the same of other programs.
    """

    def __init__(self, warps: int, programs: int) -> None:
        self.warps, self.columns, self.time = warps, 4 * warps, 0
        self.seen = np.zeros((warps, self.columns + 2), np.int64)
        self.seen[:, NOBODY] = NEVER
        self.fenced = self.seen.copy()
        self.seen[np.arange(warps), np.arange(warps)] = NEVER
        self.known = np.zeros((warps, programs), np.int32)
        self._settle()

    def products(self, warp: int) -> int:
        """The agent that a warp's products are."""
        return self.warps + warp

    def loads(self, warp: int) -> int:
        """The agent that a warp's loads of tensor memory are."""
        return 2 * self.warps + warp

    def stores(self, warp: int) -> int:
        """The agent that a warp's stores to tensor memory are."""
        return 3 * self.warps + warp

    def tick(self) -> None:
        """What comes from now on is later than all before."""
        self.time += 1

    def barrier(self) -> None:
        """All warps have seen what each of them has done, and what each has seen."""
        self.tick()
        self.seen[:] = self.seen.max(0)
        self.seen[:, : self.warps] = self.time
        self.seen[np.arange(self.warps), np.arange(self.warps)] = NEVER
        self.fenced[:] = self.fenced.max(0)
        self.known[:] = self.known.max(0)
        self._settle()

    def complete(self, warp: int, agent: int) -> None:
        """A warp has waited for all that the agent has begun."""
        self.tick()
        self.seen[warp, agent] = self.time
        self._settle()

    def fence(self, warps: Array) -> None:
        """`fence.proxy.async` of warps: what they have seen and done, the asynchronous proxy sees too."""
        self.tick()
        for warp in warps:
            self.fenced[warp] = np.maximum(self.fenced[warp], np.minimum(self.seen[warp], self.time))
            self.fenced[warp, NOBODY] = NEVER
        self._settle()

    def publish(self, warp: int) -> Seen:
        """What a warp releases: all that it has seen and done."""
        self.tick()
        return Seen(np.minimum(self.seen[warp], self.time), self.fenced[warp].copy(), self.known[warp].copy())

    def nothing(self) -> Seen:
        """What nobody has published anything for."""
        return Seen(np.zeros(self.columns + 2, np.int64), np.zeros(self.columns + 2, np.int64), self.known[0] * 0)

    def learn(self, warp: int, published: Seen) -> None:
        """A warp acquires what was released."""
        own = Seen(self.seen[warp], self.fenced[warp], self.known[warp])
        own.join(published)
        self.seen[warp, NOBODY] = self.fenced[warp, NOBODY] = self.seen[warp, warp] = NEVER
        self._settle()

    def ordered_until(self, warp: int) -> int:
        """The time before which all accesses of the program's warps are ordered before this warp's next one."""
        return int(np.minimum(self.seen[warp, : self.warps], self.time).min())

    def with_own_products(self, warp: int) -> Array:
        """What a warp's next product has seen, int64 [columns + 2]: its products follow one another."""
        row = self.seen[warp].copy()
        row[self.products(warp)] = NEVER
        return row

    def _settle(self) -> None:
        """The columns `SEVERAL`."""
        self.seen[:, SEVERAL] = self.seen[:, : self.warps].min(1)
        self.fenced[:, SEVERAL] = self.fenced[:, : self.warps].min(1)
