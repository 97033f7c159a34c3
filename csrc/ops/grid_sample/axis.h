// How the coordinates of one axis of a sampling grid become pixels, one at a time: for the CPU, which calls these in
// loops that become vectors, and for a device.
#pragma once
#include <math.h>

#include "common/arguments.h"

namespace fusedrnn {
namespace {

FUSEDRNN_INLINE float whole(float x) { return ::floorf(x); }
FUSEDRNN_INLINE double whole(double x) { return ::floor(x); }
FUSEDRNN_INLINE float nearest(float x) { return ::rintf(x); }  // ties to even
FUSEDRNN_INLINE double nearest(double x) { return ::rint(x); }
FUSEDRNN_INLINE float remainder_of(float x, float y) { return ::fmodf(x, y); }
FUSEDRNN_INLINE double remainder_of(double x, double y) { return ::fmod(x, y); }

// `at` is where a point is in pixels, `slope` the derivative of that.
template <class Real>
class Axis {
 public:
  FUSEDRNN_INLINE Axis(Index size, bool align_corners)
      : last_(static_cast<Real>(size - 1)),
        span_(static_cast<Real>(align_corners ? size - 1 : size)),
        scale_(span_ / 2),
        low_(align_corners ? Real(0) : Real(-0.5)) {}

  FUSEDRNN_INLINE void place(Real value, Real& at, Real& slope) const {
    at = (value + 1) * scale_ + low_;
    slope = scale_;
  }
  // Where no pixel is near a point it is at -2: the numbers of pixels stay small.
  FUSEDRNN_INLINE void bound(Real& at) const { at = ((at > Real(-2)) & (at < last_ + 2)) ? at : Real(-2); }
  // Beyond the outer pixels nothing changes.
  FUSEDRNN_INLINE void clip(Real& at, Real& slope) const {
    const bool before = !(at > 0), after = at >= last_;
    slope = (before | after) ? Real(0) : slope;
    at = before ? Real(0) : after ? last_ : at;
  }
  // Mirrored at the outer edges of the image, or the middles of the outer pixels, as often as it takes.
  FUSEDRNN_INLINE void reflect(Real& at, Real& slope) const {
    if (at >= low_ && at < low_ + span_) return;
    if (span_ == 0) {
      at = slope = 0;
      return;
    }
    const bool below = at < low_;
    const Real distance = below ? low_ - at : at - low_;
    // An infinite distance has no remainder: it counts as an even number of spans.
    const Real times = whole(distance / span_);
    const Real rest = distance - distance == 0 ? remainder_of(distance, span_) : Real(0);
    const bool odd = times - 2 * whole(times / 2) == 1;
    at = odd ? span_ - rest + low_ : rest + low_;
    slope = odd != below ? -slope : slope;
  }

 private:
  Real last_, span_, scale_, low_;
};

}  // namespace
}  // namespace fusedrnn
