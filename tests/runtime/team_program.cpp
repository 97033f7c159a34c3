// Threads, as Python's would be, that start teams, run steps on them, and take and give memory, all at once: what they
// find is what they left. Ends with 0 where that holds. Compiled with the sources it is about and without the engine,
// and under ThreadSanitizer where there is an OpenMP that it understands.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/layers/step_team.h"
#include "cpu/runtime/contention.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/pool.h"

namespace {

using namespace fusedrnn;

constexpr int kCallers = 3, kThreads = 3, kRounds = 200;

std::atomic<bool> failed{false};

void check(bool holds, const char* what) {
  if (!holds && !failed.exchange(true)) std::fprintf(stderr, "%s\n", what);
}

// Somebody is late now and then, for longer than the others spin.
void be_late(int round, int thread) {
  if (round % 50 == 0 && round / 50 % kThreads == thread) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

// A team whose members read what the others wrote. Plain integers: barriers, and the team's begin and end, order them.
void run_teams() {
  struct Team {
    Barrier barrier;
    std::vector<int> written = std::vector<int>(kThreads);
    int round = 0, size = 0;
  } team;
  for (team.round = 1; team.round <= kRounds; ++team.round) {
    parallel(kThreads, [&team](int thread, int threads) {
      be_late(team.round, thread);
      team.written[thread] = team.round;
      if (thread == 0) team.size = threads;
      team.barrier.wait(threads);
      for (int other = 0; other < threads; ++other) check(team.written[other] == team.round, "a team: not yet written");
    });
    for (int member = 0; member < team.size; ++member)
      check(team.written[member] == team.round, "a team: lost at the end");
  }
}

// Each thread writes its place in the grid; those of the same rows read each other's.
void grid_step(const StepArguments<float>& layer, Worker& worker) {
  float* const row = layer.y.at(worker.row_part());
  be_late(static_cast<int>(layer.clip) / 2, worker.thread);
  row[worker.unit_part()] = layer.clip;
  worker.meet_row();
  for (int part = 0; part < worker.split.unit_parts; ++part) check(row[part] == layer.clip, "a step: not yet written");
  worker.meet_row();
}

void run_steps(const StepCost& cost) {
  StepTeam team(cost);
  std::vector<float> places(kThreads * kThreads);
  StepArguments<float> layers[2] = {};
  for (int round = 1; round <= kRounds; ++round) {
    for (int layer = 0; layer < 2; ++layer) {
      layers[layer].y = {places.data(), kThreads};
      layers[layer].clip = static_cast<float>(2 * round + layer);
    }
    team.run(2, 1 + round % kThreads, [&](std::size_t layer, Worker& worker) { grid_step(layers[layer], worker); });
    check(places[0] == layers[1].clip, "a step: lost at the end");
  }
}

// Buffers go from hand to hand: taken by one thread, given back by another.
std::mutex hands_mutex;
std::vector<Buffer> hands;

void use_memory() {
  for (int round = 1; round <= 5 * kRounds; ++round) {
    Buffer buffer(std::size_t(1) << (6 + round % 14));  // up to twice the size from which on they are mappings
    check(pool_use().live >= buffer.bytes(), "bytes in use");
    std::memset(buffer.data(), round & 0xff, buffer.bytes());
    const auto* const bytes = buffer.as<unsigned char>();
    check(bytes[0] == (round & 0xff) && bytes[buffer.bytes() - 1] == (round & 0xff), "memory that two have");
    const std::lock_guard<std::mutex> lock(hands_mutex);
    hands.push_back(std::move(buffer));
    if (hands.size() > 5) hands.erase(hands.begin());
  }
}

// What any thread may call at any time.
void meddle(const std::atomic<bool>& over) {
  for (int round = 0; !over.load(); ++round) {
    set_num_threads(1 + round % kThreads, true, round % 5 == 0);
    check(num_threads() >= 1 && forks_of_process() == 0, "threads");
    set_pool_span(round % 2 ? 0.0 : 30.0);
    age_memory();
    if (round % 10 == 0) release_memory();
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

}  // namespace

int main() {
  std::atomic<bool> over{false};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller)
    callers.emplace_back([] {
      run_teams();
      run_steps({8, 64, 64, 1024, 4, 16, 6, 1});   // divided by units
      run_steps({600, 1, 64, 1024, 4, 16, 6, 1});  // by rows
      use_memory();
    });
  std::thread meddler([&over] { meddle(over); });
  for (std::thread& caller : callers) caller.join();
  over.store(true);
  meddler.join();
  hands.clear();
  release_memory();
  check(pool_use().live == 0 && pool_use().idle == 0, "memory that was not given back");
  return failed ? 1 : 0;
}
