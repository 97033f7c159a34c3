// Every cell, in the order of its identifier. A new cell is registered by its line here.
#pragma once
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
