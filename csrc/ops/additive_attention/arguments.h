// Arguments of additive attention, of a call on all queries at once and of a decoder's steps; see kernel.h beside this.
#pragma once
#include "common/arguments.h"
#include "common/type.h"
#include "cpu/runtime/parallel.h"

namespace fusedrnn {

// What is attended to. A row of the memory has locations [first[row], first[row + 1]) of those of all rows.
template <class Real>
struct AttentionMemory {
  Index features, size;              // M and A
  const Index* first = nullptr;      // (rows + 1,)
  const Real* values = nullptr;      // (locations, M)
  const Real* keys = nullptr;        // (locations, padded A): what the query is added to
  Real* powers = nullptr;            // (locations, padded A): exp(2 keys)
  unsigned char* bounded = nullptr;  // (rows,): whether a row's keys are small enough to be computed with by powers
  FUSEDRNN_INLINE Index count(Index row) const { return first[row + 1] - first[row]; }
  FUSEDRNN_INLINE Index width() const { return padded(size); }
};

// How a location is chosen from the distribution over them.
enum class Attention { soft, drawn, most_probable };

template <class Real>
struct AdditiveAttentionArguments {
  // What of it: packing weight_query; the keys, forward their powers, backward the last factor of their gradients; the
  // steps one after another; backward, a chunk's share of the gradient of weight_query, and the gradient of the memory.
  enum class Part { pack, keys, steps, chunk, memory };

  Part part = Part::steps;
  Attention kind = Attention::soft;
  AttentionMemory<Real> memory;
  const Index* memory_row = nullptr;      // (B,) row of the batch -> row of the memory; null: the same
  const Real* weight_score = nullptr;     // (padded A,), zeros past A
  Index query_size = 0;                   // H
  const Real* weight_query = nullptr;     // (A, H)
  Real* packed_query = nullptr;           // it as products with a query read it: padded A * H
  Real* packed_query_backward = nullptr;  // as products with a gradient do: padded H * padded A, or null
  // Which steps, of which rows; positions and rows of the batch are the schedule's.
  Schedule schedule;
  Index first_step = 0, last_step = 0;
  // The queries, one of: those of a call, by time and row; a decoder's h before the step, by position; and, going
  // backward, its outputs, of which a step's query is the one before it, and its initial state (null: zeros).
  Sequence<const Real> queries, outputs;
  StateRows<const Real> state, initial;

  Sequence<Real> attention;  // (T, B, S): forward, written up to the last location of any row; backward, read
  Index locations = 0;       // S
  Sequence<Real> context;    // (T, B, M): forward, written
  // Attention of one location, forward, written and backward, read: each (T, B).
  std::uint64_t key = 0;            // of the draws
  Sequence<std::int64_t> location;  // -1 where there is no memory
  Sequence<Real> log_prob;          // of the location; null: nobody wants the two
  Sequence<Real> entropy;           // of the distribution

  // Backward.
  Sequence<const Real> dcontext, dattention;  // null data: zeros
  Sequence<const Real> dlog_prob, dentropy;   // (T, B)
  StateRows<const Real> late;                 // a decoder's: gradient of the context through the cell, by position
  Sequence<Real> total;                       // (T, B, M): written, the sum of both; null: dcontext alone
  StateRows<Real> dh;                         // added to by position, unless null
  Range dh_blocks = {0, 0};                   // of units that this thread adds to
  Blocked<Real> dquery_panel;  // a decoder's: gradients of the projected queries of a chunk, by packed row
  Index chunk_row = 0, chunk_rows = 0;
  Blocked<Real> h_panel;  // a chunk's queries
  bool adding = false;
  Real* dweight_query = nullptr;  // (A, H): a chunk's share, written or added
  Sequence<Real> dqueries;        // a call's: (T, B, padded A), written: gradients of the projected queries
  Real* dkeys = nullptr;          // (locations, padded A): added to, all but the factor weight_score
  Real* dscore = nullptr;         // (B, padded A): added to, each row's share of the gradient of weight_score
  const Real* dvalues = nullptr;  // the memory's part: (locations, M), what reaches the memory through the keys
  Sequence<Real> dmemory;         // (S, B, M): written
  // Workspace.
  Real* query;   // (rows, 2, padded A): the projected query at hand, by position, and exp(2 query)
  Real* scores;  // (rows, padded S): gradients by location, by position
};

// On a device, whose arrays are of `type`, and A of its accumulator's; see kernel.cuh. A call on all queries at once,
// or a decoder's, whose queries are its states: those fields are absent then. A null array is absent. Lengths are taken
// as if clamped to what they may be.
struct AdditiveAttentionCall {
  Type type;
  Index steps, rows, locations;        // T, B, S
  Index query_size, features, size;    // H, M, A
  const void* query;                   // (T, B, H)
  SequenceView memory;                 // (S, B, M)
  const std::int64_t* memory_lengths;  // (memory_rows,) or null: S
  Index memory_rows;                   // B, but for a stepper
  const std::int64_t* memory_row;      // a stepper's: (B,) row -> row of the memory; null: the same
  const void *weight_query, *weight_memory, *bias, *weight_score;
  void* values;            // (memory_rows, S, M): the memory, zeros past a length; null: in the workspace
  void* keys;              // A (memory_rows, S, A); null: in the workspace
  bool ready;              // values and keys are made already; backward the keys are
  SequenceView attention;  // A (T, B, S): forward written, unless null, backward read
  SequenceView context;    // (T, B, M): forward, written
  // Attention of one location.
  int kind;                        // 0: there is none, 1: a location is drawn, 2: the most probable one
  std::uint64_t seed, number;      // of the draws
  SequenceView location;           // int64 (T, B): forward written, unless null, backward read
  SequenceView log_prob, entropy;  // A (T, B): forward, written, unless null; backward entropy is read
  // Backward: gradients, null for zeros, and what is written.
  SequenceView dcontext, dattention;  // (T, B, M); A (T, B, S)
  SequenceView dlog_prob, dentropy;   // A (T, B)
  void* dquery;                       // (T, B, H)
  SequenceView dmemory;               // (S, B, M)
  void *dweight_query, *dweight_memory, *dbias, *dweight_score;
  bool accumulate;  // add to these four instead of writing them
  void* workspace;

  template <class Visit>
  void each_field(const Visit& visit) {
    visit("dtype", type);
    visit("steps", steps);
    visit("rows", rows);
    visit("locations", locations);
    visit("query_size", query_size);
    visit("features", features);
    visit("size", size);
    visit("query", query);
    visit("memory", memory);
    visit("memory_lengths", memory_lengths);
    visit("memory_rows", memory_rows);
    visit("memory_row", memory_row);
    visit("weight_query", weight_query);
    visit("weight_memory", weight_memory);
    visit("bias", bias);
    visit("weight_score", weight_score);
    visit("values", values);
    visit("keys", keys);
    visit("ready", ready);
    visit("attention", attention);
    visit("context", context);
    visit("kind", kind);
    visit("seed", seed);
    visit("number", number);
    visit("location", location);
    visit("log_prob", log_prob);
    visit("entropy", entropy);
    visit("dcontext", dcontext);
    visit("dattention", dattention);
    visit("dlog_prob", dlog_prob);
    visit("dentropy", dentropy);
    visit("dquery", dquery);
    visit("dmemory", dmemory);
    visit("dweight_query", dweight_query);
    visit("dweight_memory", dweight_memory);
    visit("dbias", dbias);
    visit("dweight_score", dweight_score);
    visit("accumulate", accumulate);
  }
};

}  // namespace fusedrnn
