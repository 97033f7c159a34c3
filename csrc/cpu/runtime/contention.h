// Whether other work on the processors keeps teams waiting, and how many threads are worth while that lasts.
#pragma once
#include "cpu/platform/clock.h"

namespace fusedrnn {

// How long a waiter spins before it sleeps.
Nanoseconds longest_spin();

// Threads for work that one thread alone would do in about so many cycles: as many as allowed, or fewer while others
// keep teams waiting. Results do not depend on it.
int team_size(int allowed, double cycles);

// Whether no team is smaller now for the sake of others.
bool teams_are_whole();

// Called by the last thread to come to a barrier at which others have fallen asleep: looks whether it is late because
// it was kept from running, rather than because it had more to do.
void others_slept();

// Whether a team is to meet at a barrier before it disbands, where a late thread is noticed.
bool meets_at_end();
// The calling thread waited so long for its team to disband.
void waited_at_end(Nanoseconds time);

// Teams always have the size asked for, whoever waits: for tests of the barrier and the split rule. `threads` of them
// run on `processors`.
void set_team_rule(bool always, int threads, int processors);

}  // namespace fusedrnn
