// What a cell is made of. Each header of this folder fills its cell's traits in; memory layouts, drivers and bindings
// read them, and none of them writes a cell's states or parameters out by hand.
#pragma once
#include "common/attributes.h"

namespace fusedrnn {

constexpr int kMaxSlots = 4;
constexpr int kMaxStates = 2;
constexpr int kMaxPhases = 2;

// What values an activated slot may have; each cell's `range` tells it of its own.
enum class GateRange { any, sigmoid, tanh };

// What an array of parameters is to a cell.
enum class Role { weight_ih, weight_hh, bias_ih, bias_hh, per_unit };

// A run of consecutive slots, and the gate whose weights feed each of them.
struct Window {
  int first;
  int count;
  int gate[kMaxSlots];
};

// Names, up to the first that is not there.
struct Names {
  const char* name[kMaxSlots];
  FUSEDRNN_INLINE constexpr int count() const {
    int count = 0;
    while (count < kMaxSlots && name[count]) ++count;
    return count;
  }
};

// A parameter of some values for every unit, which no product reads: an array (rows, H) of the cell's own. No rows: the
// cell has none.
struct PerUnit {
  const char* name;
  int rows;
};

struct CellTraits {
  const char* name = nullptr;
  Names gate_names = {};   // the gate blocks of weight_ih and weight_hh, in torch's order
  Names state_names = {};  // h, or h and c; each (B, H)
  int slots = 0;           // values a unit keeps for each step: on the tape after activation
  PerUnit per_unit = {};
  int phases = 0;     // products with weight_hh in a step
  Window input = {};  // slots that x . weight_ih feeds
  Window recurrent[kMaxPhases] = {};
  // Plain numbers, which code on a device may read.
  int gates = 0, states = 0;

  CellTraits() = default;
  // A constructor, rather than initialisers of the last two that read other members, which nvcc does not evaluate.
  template <int Count>
  FUSEDRNN_INLINE constexpr CellTraits(const char* name, Names gate_names, Names state_names, int slots,
                                       PerUnit per_unit, int phases, Window input, const Window (&recurrent)[Count])
      : name(name),
        gate_names(gate_names),
        state_names(state_names),
        slots(slots),
        per_unit(per_unit),
        phases(phases),
        input(input),
        gates(gate_names.count()),
        states(state_names.count()) {
    for (int phase = 0; phase < Count; ++phase) this->recurrent[phase] = recurrent[phase];
  }
};

}  // namespace fusedrnn
