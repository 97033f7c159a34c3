// Arguments of additive attention, of a call on all queries at once and of a decoder's steps; see kernel.h beside this.
#pragma once
#include "common/arguments.h"
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

}  // namespace fusedrnn
