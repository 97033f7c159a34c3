#include "bindings/torch/tensors.h"

#include <algorithm>
#include <string>

namespace fusedrnn {
namespace {

namespace py = pybind11;

// Of DLPack 1.x (dlpack.h), what is read here.
struct DlTensor {
  void* data;
  std::int32_t device_type, device_id;
  std::int32_t ndim;
  std::uint8_t code, bits;
  std::uint16_t lanes;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};
constexpr std::int32_t kDlCpu = 1;
constexpr std::uint8_t kDlFloat = 2, kDlBfloat = 4;

struct DlExchange {
  std::uint32_t major, minor;
  DlExchange* older;
  void* make_tensor;
  void* from_object;
  void* to_object;
  int (*borrow)(void* object, DlTensor* tensor);  // what it fills lives as long as the object
};

// method(self), an int.
Index ask(const py::object& method, py::handle self) {
  const auto found = py::reinterpret_steal<py::object>(PyObject_CallOneArg(method.ptr(), self.ptr()));
  if (!found) throw py::error_already_set();
  return found.cast<Index>();
}

}  // namespace

bool TensorView::has_shape(const Shape& wanted) const {
  return dims == static_cast<int>(wanted.size()) && std::equal(wanted.begin(), wanted.end(), shape.begin());
}

bool TensorView::has_unit_stride() const {
  const auto last = static_cast<std::size_t>(dims - 1);
  return dims > 0 && (strides[last] == 1 || shape[last] <= 1 || numel() == 0);
}

bool TensorView::is_contiguous() const {
  Index dense = 1;
  for (int axis = dims; axis-- > 0;) {
    const auto i = static_cast<std::size_t>(axis);
    if (shape[i] != 1 && strides[i] != dense) return numel() == 0;
    dense *= shape[i];
  }
  return true;
}

Index TensorView::numel() const {
  Index count = 1;
  for (int i = 0; i < dims; ++i) count *= shape[static_cast<std::size_t>(i)];
  return count;
}

Index TensorView::extent() const {
  if (numel() == 0) return 0;
  Index last = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(dims); ++i) last += (shape[i] - 1) * strides[i];
  return last + 1;
}

Tensors::Tensors(py::object torch, py::object exchange)
    : tensor_(torch.attr("Tensor")),
      parameter_(torch.attr("nn").attr("Parameter")),
      new_empty_(tensor_.attr("new_empty")),
      empty_like_(torch.attr("empty_like")),
      is_neg_(tensor_.attr("is_neg")),
      storage_of_(tensor_.attr("untyped_storage")),
      offset_of_(tensor_.attr("storage_offset")),
      nbytes_of_(torch.attr("UntypedStorage").attr("nbytes")) {
  constexpr const char* kName = "dlpack_exchange_api";
  if (!PyCapsule_IsValid(exchange.ptr(), kName)) return;  // None, or of a time to come
  auto* found = static_cast<DlExchange*>(PyCapsule_GetPointer(exchange.ptr(), kName));
  while (found && found->major != 1) found = found->older;
  exchange_ = found;
}

bool Tensors::look(py::handle tensor, TensorView& view) const {
  if (!exchange_) return look_by_attribute(tensor, view);
  DlTensor found;
  if (static_cast<const DlExchange*>(exchange_)->borrow(tensor.ptr(), &found) != 0) throw py::error_already_set();
  if (found.ndim > TensorView::kMaxDims) return false;
  view.data = static_cast<char*>(found.data) + found.byte_offset;
  view.dims = found.ndim;
  const bool known = found.bits == 16 ? found.code == kDlBfloat : found.code == kDlFloat;
  view.bits = found.device_type == kDlCpu && known && found.lanes == 1 ? found.bits : 0;
  std::copy_n(found.shape, found.ndim, view.shape.begin());
  std::copy_n(found.strides, found.ndim, view.strides.begin());
  return true;
}

bool Tensors::look_by_attribute(py::handle tensor, TensorView& view) const {
  const auto shape = tensor.attr("shape").cast<py::tuple>(), strides = tensor.attr("stride")().cast<py::tuple>();
  if (shape.size() > TensorView::kMaxDims) return false;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    view.shape[i] = shape[i].cast<Index>();
    view.strides[i] = strides[i].cast<Index>();
  }
  view.data = reinterpret_cast<char*>(tensor.attr("data_ptr")().cast<std::uintptr_t>());
  view.dims = static_cast<int>(shape.size());
  const std::string dtype = py::str(tensor.attr("dtype"));
  const int bits = dtype == "torch.float32" ? 32 : dtype == "torch.float64" ? 64 : dtype == "torch.bfloat16" ? 16 : 0;
  view.bits = tensor.attr("is_cpu").cast<bool>() ? bits : 0;
  return true;
}

bool Tensors::has_memory(py::handle tensor, const TensorView& view) const {
  if (view.numel() == 0) return true;
  if (!view.data) return false;  // torch has tensors that stand for others, or for zeros
  const auto storage = py::reinterpret_steal<py::object>(PyObject_CallOneArg(storage_of_.ptr(), tensor.ptr()));
  if (!storage) throw py::error_already_set();
  const Index there = ask(nbytes_of_, storage) * 8 / view.bits;
  return ask(offset_of_, tensor) + view.extent() <= there;
}

py::object Tensors::made(PyObject* tensor, int bits, const Shape& shape, TensorView& view) const {
  if (!tensor) throw py::error_already_set();
  auto owned = py::reinterpret_steal<py::object>(tensor);
  const bool is_tensor = reinterpret_cast<PyObject*>(Py_TYPE(tensor)) == tensor_.ptr();
  if (!is_tensor || !look(owned, view) || view.bits != bits || !view.has_shape(shape) || !view.is_contiguous() ||
      (!view.data && view.numel() > 0))
    throw py::type_error("torch made another tensor than it was asked for");
  return owned;
}

py::object Tensors::make(py::handle like, int bits, const Shape& shape, TensorView& view) const {
  // A tuple of sizes would take torch twice as long to parse.
  std::array<py::object, TensorView::kMaxDims> sizes;
  std::array<PyObject*, 1 + TensorView::kMaxDims> arguments{like.ptr()};
  for (std::size_t i = 0; i < shape.size(); ++i) {
    sizes[i] = py::int_(shape[i]);
    arguments[i + 1] = sizes[i].ptr();
  }
  return made(PyObject_Vectorcall(new_empty_.ptr(), arguments.data(), shape.size() + 1, nullptr), bits, shape, view);
}

py::object Tensors::make_like(py::handle like, const TensorView& of, TensorView& view) const {
  const Shape shape(of.shape.begin(), of.shape.begin() + of.dims);
  return made(PyObject_CallOneArg(empty_like_.ptr(), like.ptr()), of.bits, shape, view);
}

bool Tensors::read(py::handle tensor, int bits, TensorView& view) const {
  const auto* kind = reinterpret_cast<PyObject*>(Py_TYPE(tensor.ptr()));
  if (kind != tensor_.ptr() && kind != parameter_.ptr()) return false;
  try {
    return look(tensor, view) && view.bits == bits && ask(is_neg_, tensor) == 0 && has_memory(tensor, view);
  } catch (const py::error_already_set&) {  // torch has tensors without a pointer or a storage
    return false;
  }
}

}  // namespace fusedrnn
