#include "cuda/persistent/launch.cuh"

namespace fusedrnn {
namespace persistent {
FUSEDRNN_INSTANTIATE_LAUNCH(float)
}  // namespace persistent
}  // namespace fusedrnn
