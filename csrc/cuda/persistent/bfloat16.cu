#include "cuda/persistent/launch.cuh"

namespace fusedrnn {
namespace persistent {
FUSEDRNN_INSTANTIATE_LAUNCH(Bfloat16)
}  // namespace persistent
}  // namespace fusedrnn
