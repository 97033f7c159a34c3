// The policy of the block programs that is a host playing a GPU, as adversely as it can:
//   - threads of a block run one after the other in an order drawn anew for every `each`;
//   - blocks are stopped at every barrier and wherever they wait, and one that can go on is drawn to do so;
//   - what is stored in the exchange buffers comes there later, in an order drawn at random but for each word's own and
//     for fences; of odd seeds the marks that a word is missing come last, only by a fence or ahead of the next word at
//     their place, so that a program that lacks a fence reads what was sent before;
//   - shared memory begins as nan, and two threads that touch the same word without a barrier between them, one of them
//     writing, are reported; so are blocks that wait for each other.
// Loads are in order: of memory ordering it shows half. It shows nothing of deadlock from a lack of multiprocessors,
// nor of time. For tests/block_program/, and for the host build of the engine (host.cpp).
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda/persistent/backward.h"
#include "cuda/persistent/dispatch.h"
#include "cuda/persistent/forward.h"

namespace fusedrnn {
namespace persistent {

// Runs blocks as coroutines, one at a time.
class Scheduler {
 public:
  Scheduler(unsigned seed, std::string& error) : random(seed), error(error), holds_marks_(seed % 2 == 1) {}

  std::mt19937 random;
  std::string& error;  // empty, or what went wrong first
  bool fences = true;  // whether they do anything: a test of the tests

  void run(int blocks, std::function<void(int)> body) {
    body_ = std::move(body);
    blocks_.clear();
    for (int i = 0; i < blocks; ++i) start(i);
    std::vector<Block*> ready;
    while (error.empty()) {
      for (std::size_t count = random() % (free_stores() + 1); count > 0; --count) deliver();
      ready.clear();
      bool alive = false;
      for (auto& block : blocks_) {
        alive |= !block->done;
        if (!block->done && (!block->may_go_on || block->may_go_on())) ready.push_back(block.get());
      }
      if (!alive && stores_.empty()) return;
      if (ready.empty() && stores_.empty()) return fail("every block waits for another one");
      if (ready.empty()) {
        deliver();
        continue;
      }
      running_ = ready[random() % ready.size()];
      swapcontext(&main_, &running_->context);
    }
  }

  // Called by a block: stop here until it is drawn again, which is not before the condition holds.
  void stop(std::function<bool()> may_go_on = nullptr) {
    Block* const self = running_;
    self->may_go_on = std::move(may_go_on);
    swapcontext(&self->context, &main_);
  }
  void fail(const std::string& what) {
    if (error.empty()) error = what;
  }

  // Of the exchange buffers: a block's store; everything of that block is there; how many stores have come.
  void store(std::uint32_t* at, std::uint32_t word) { stores_.push_back({running_, at, word}); }
  void fence() {
    if (!fences) return;
    const auto own = [this](const Store& store) { return store.block == running_; };
    for (const Store& store : stores_)
      if (own(store)) *store.at = store.word;
    stores_.erase(std::remove_if(stores_.begin(), stores_.end(), own), stores_.end());
    ++delivered_;
  }
  int delivered() const { return delivered_; }

 private:
  struct Block {
    int index;
    bool done = false;
    std::function<bool()> may_go_on;
    std::unique_ptr<char[]> stack;
    ucontext_t context;
  };
  struct Store {
    const Block* block;
    std::uint32_t* at;
    std::uint32_t word;
  };
  const bool holds_marks_;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<Store> stores_;  // on their way
  int delivered_ = 0;
  std::function<void(int)> body_;
  Block* running_ = nullptr;
  ucontext_t main_;

  // Of the stores on their way, those that may be drawn to come there.
  bool is_free(const Store& store) const { return !holds_marks_ || store.word != kMissing; }
  std::size_t free_stores() const {
    return std::count_if(stores_.begin(), stores_.end(), [this](const Store& store) { return is_free(store); });
  }
  // One of them comes there: of those to a word, the first. Any may, if none is free.
  void deliver() {
    const std::size_t free = free_stores();
    std::size_t before = random() % (free > 0 ? free : stores_.size());
    const auto drawn = std::find_if(stores_.begin(), stores_.end(),
                                    [&](const Store& store) { return (free == 0 || is_free(store)) && before-- == 0; });
    std::uint32_t* const at = drawn->at;
    const auto first =
        std::find_if(stores_.begin(), stores_.end(), [at](const Store& store) { return store.at == at; });
    *at = first->word;
    stores_.erase(first);
    ++delivered_;
  }

  void start(int index) {
    constexpr std::size_t bytes = 64 << 10;
    auto block = std::make_unique<Block>();
    block->index = index;
    block->stack.reset(new char[bytes]);
    getcontext(&block->context);
    block->context.uc_stack.ss_sp = block->stack.get();
    block->context.uc_stack.ss_size = bytes;
    block->context.uc_link = &main_;
    const auto self = reinterpret_cast<std::uintptr_t>(this);
    makecontext(&block->context, reinterpret_cast<void (*)()>(enter), 2, unsigned(self >> 32), unsigned(self));
    blocks_.push_back(std::move(block));
  }
  static void enter(unsigned high, unsigned low) {
    auto* const self = reinterpret_cast<Scheduler*>(std::uintptr_t(high) << 32 | low);
    self->body_(self->running_->index);
    self->running_->done = true;
  }
};

// Shared memory that knows who touched a word since the last barrier.
class SharedMemory {
 public:
  SharedMemory(std::size_t bytes, Scheduler& scheduler) : words_(bytes / sizeof(float)), scheduler_(scheduler) {}

  void barrier() { ++epoch_; }
  void store(int thread, int index, float value) {
    Word& word = at(index);
    if ((word.written == epoch_ && word.writer != thread) || (word.read == epoch_ && word.reader != thread))
      scheduler_.fail("a thread writes shared memory that another one uses, without a barrier between them");
    word.value = value;
    word.written = epoch_;
    word.writer = thread;
  }
  float load(int thread, int index) {
    Word& word = at(index);
    if (word.written == epoch_ && word.writer != thread)
      scheduler_.fail("a thread reads shared memory that another one writes, without a barrier between them");
    word.reader = word.read == epoch_ && word.reader != thread ? kSeveral : thread;
    word.read = epoch_;
    return word.value;
  }

 private:
  static constexpr int kSeveral = -1;
  struct Word {
    float value = __builtin_nanf("");
    int written = -1, writer = 0, read = -1, reader = 0;
  };
  std::vector<Word> words_;
  Scheduler& scheduler_;
  int epoch_ = 0;

  Word& at(int index) {
    if (index >= 0 && std::size_t(index) < words_.size()) return words_[index];
    scheduler_.fail("a thread leaves its block's shared memory");
    return words_[0];
  }
};

// D += A B from the fragments of 32 lanes, laid out as csrc/cuda/persistent/operand.h says.
template <class T>
void host_mma(const Fragments* lanes) {
  using O = Operand<T>;
  const auto value = [](std::uint32_t word, int next) {
    if constexpr (O::kPerWord == 1)
      return float_of(word);
    else
      return widen(T{static_cast<std::uint16_t>(next ? word >> 16 : word)});
  };
  float a[16][O::kDepth], b[O::kDepth][8];
  for (int lane = 0; lane < 32; ++lane)
    for (int half = 0; half < 2; ++half)
      for (int next = 0; next < O::kPerWord; ++next) {
        const int g = lane / 4, k = O::kDepth / 2 * half + lane % 4 * O::kPerWord + next;
        a[g][k] = value(lanes[lane].a[2 * half], next);
        a[g + 8][k] = value(lanes[lane].a[2 * half + 1], next);
        b[k][g] = value(lanes[lane].b[half], next);
      }
  float d[16][8] = {};
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < O::kDepth; ++k)
      for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) lanes[lane].d[i] += d[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
}

// One block. Thread is what a thread of the program holds in registers.
template <class Thread>
class HostPolicy {
 public:
  HostPolicy(int block, std::size_t shared_bytes, Scheduler& scheduler)
      : block_(block), threads_(kThreads), shared_(shared_bytes, scheduler), scheduler_(scheduler) {
    // Registers begin as nan, too.
    std::memset(static_cast<void*>(threads_.data()), 0xff, sizeof(Thread) * kThreads);
  }

  int block() const { return block_; }
  template <class F>
  void each(F f) {
    // An odd stride permutes; std::shuffle would take most of the time.
    const unsigned first = scheduler_.random(), stride = scheduler_.random() | 1;
    for (unsigned i = 0; i < kThreads; ++i) {
      const int thread = static_cast<int>((first + i * stride) % kThreads);
      f(thread, threads_[thread]);
    }
  }
  void barrier() {
    shared_.barrier();
    scheduler_.stop();
  }
  template <class T, class F>
  void mma(F fragments) {
    Fragments lanes[32];
    for (int first = 0; first < kThreads; first += 32) {
      for (int lane = 0; lane < 32; ++lane) lanes[lane] = fragments(threads_[first + lane]);
      host_mma<T>(lanes);
    }
  }

  void store_partial(int thread, int index, float value) { shared_.store(thread, index, value); }
  template <int kCount>
  void load_partials(int thread, int index, float (&values)[kCount]) {
    for (int i = 0; i < kCount; ++i) values[i] = shared_.load(thread, index + i);
  }

  void store_exchange(std::uint32_t* at, std::uint32_t word) { scheduler_.store(at, word); }
  Words load_exchange(const std::uint32_t* buffer, int index) {
    Words words;
    std::memcpy(&words, buffer + 4 * index, sizeof(Words));
    return words;
  }
  template <class Ready, class Again>
  void await(Ready ready, Again again) {
    while (true) {
      const int delivered = scheduler_.delivered();
      bool all = true;
      each([&](int thread, Thread& mine) {
        if (!ready(mine)) again(thread, mine);
        all = all && ready(mine);
      });
      if (all) return;
      scheduler_.stop([=] { return scheduler_.delivered() != delivered; });
    }
  }
  void fence() { scheduler_.fence(); }
  void prefetch(const void*) {}

 private:
  const int block_;
  std::vector<Thread> threads_;
  SharedMemory shared_;
  Scheduler& scheduler_;
};

// As launch_stages of launch.cuh.
template <class Program>
void run_stages(const Plan& plan, const typename Program::Arguments& arguments, Scheduler& scheduler) {
  const auto kernel = [&](int first, int end) {
    scheduler.run(plan.grid(), [&, first, end](int block) {
      const auto policy = std::make_unique<HostPolicy<typename Program::Thread>>(block, plan.shared_bytes, scheduler);
      Program::run(*policy, arguments, first, end);
    });
  };
  const int stages = arguments.batch.steps() + 1;
  for (Index i = 0; i < plan.exchange_words(); ++i) Program::Exchange::prepare(arguments.batch, arguments.grid, i);
  if (plan.problem.form == Form::one_kernel) return kernel(0, stages);
  for (int stage = 0; stage < stages; ++stage) kernel(stage, stage + 1);
}

// As launch_program of launch.cuh, for those programs whose Compiled::program is true: all would take half a minute to
// compile.
template <template <class, class, int> class Program, class Compiled, class T, class Arguments>
void run_program(const Plan& plan, Arguments& arguments, void* workspace, Scheduler& scheduler) {
  arguments.grid = grid_of(plan, workspace);
  const bool found = with_cell(plan.problem.cell, false, [&](auto cell) {
    using Cell = typename std::decay_t<decltype(cell)>::type;
    return with_capacity(plan.capacity, false, [&](auto capacity) {
      constexpr int kCapacity = decltype(capacity)::value;
      if constexpr (Compiled::template program<T, Cell, kCapacity>)
        run_stages<Program<T, Cell, kCapacity>>(plan, arguments, scheduler);
      return Compiled::template program<T, Cell, kCapacity>;
    });
  });
  if (!found) scheduler.fail("the tests do not compile this program");
}

}  // namespace persistent
}  // namespace fusedrnn
