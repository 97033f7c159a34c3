// Every cell, in the order of its identifier. A new cell is registered by its line here. A build may have a registry of
// its own, of the same form, in the header that FUSEDRNN_REGISTRY names.
#pragma once
#ifdef FUSEDRNN_REGISTRY
#include FUSEDRNN_REGISTRY
#else
#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"

#define FUSEDRNN_FOR_EACH_CELL(APPLY) \
  APPLY(Rnn<false>)                   \
  APPLY(Rnn<true>)                    \
  APPLY(Lstm<false, false>)           \
  APPLY(Lstm<true, false>)            \
  APPLY(Lstm<false, true>)            \
  APPLY(Lstm<true, true>)             \
  APPLY(Gru<true>)                    \
  APPLY(Gru<false>)

#endif
