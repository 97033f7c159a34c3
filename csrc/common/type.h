// The types of numbers that a device's arrays hold.
#pragma once

namespace fusedrnn {

enum class Type { float32, float64, bfloat16, float16 };

}  // namespace fusedrnn
