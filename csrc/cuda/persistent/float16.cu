#include "cuda/persistent/launch.cuh"

namespace fusedrnn {
namespace persistent {
FUSEDRNN_INSTANTIATE_LAUNCH(Float16)
}  // namespace persistent
}  // namespace fusedrnn
