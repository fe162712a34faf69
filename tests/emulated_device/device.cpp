// An accelerator emulated in host memory, under torch's PrivateUse1 key.
//
// Each storage on the device owns a storage on the host with the same bytes. An operator that
// reaches the device gets host tensors over these bytes, runs on the CPU, and its results move to
// the device without a copy: views stay views, and what is resized in place is resized on both.
// As CUDA does, the device refuses tensors on the host among its operands, but for those of no
// dimension and for the indices of `index` and `index_put`. Whatever makes the host wait for the
// device is written down by the operator's name; `emulated_device::reads` returns the names.

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <algorithm>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace {

using c10::IValue;
using c10::Storage;

const c10::Device kDevice(c10::DeviceType::PrivateUse1, 0);
const c10::DispatchKeySet kHostKey(c10::DispatchKey::CPU);

// ---- Memory ---------------------------------------------------------------------------------

c10::DataPtr owning(const Storage& host) {
  auto release = [](void* context) { delete static_cast<Storage*>(context); };
  return {host.mutable_data(), new Storage(host), release, kDevice};
}

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    return owning(Storage(Storage::use_byte_size_t(), bytes, c10::GetAllocator(c10::kCPU), true));
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
} memory;

Storage host_of(const Storage& device) {
  return *static_cast<Storage*>(device.data_ptr().get_context());
}

Storage device_of(const Storage& host) {
  return Storage(Storage::use_byte_size_t(), host.nbytes(), owning(host), &memory, true);
}

bool on_device(const at::Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == kDevice.type();
}

// The same elements over another storage.
at::Tensor over(const Storage& storage, const at::Tensor& tensor, c10::DispatchKey key) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(
      Storage(storage), c10::DispatchKeySet(key), tensor.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(
      tensor.sizes(), tensor.strides(), tensor.storage_offset());
  made._set_conj(tensor.is_conj());
  made._set_neg(tensor.is_neg());
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) {
    made.unsafeGetTensorImpl()->set_wrapped_number(true);
  }
  return made;
}

at::Tensor host_tensor(const at::Tensor& tensor) {
  return over(host_of(tensor.storage()), tensor, c10::DispatchKey::CPU);
}

// ---- What the host reads ----------------------------------------------------------------------

std::mutex lock;
std::vector<std::string> reads;

void write_down(const std::string& name) {
  std::lock_guard<std::mutex> guard(lock);
  reads.push_back(name);
}

bool is_mask(const IValue& index) {
  if (!index.isTensor() || !index.toTensor().defined()) return false;
  auto kind = index.toTensor().scalar_type();
  return kind == at::kBool || kind == at::kByte;
}

// Whether CUDA's kernel waits: for a number, for the size of its result, or for an error code.
bool waits(const c10::OperatorHandle& op, at::ArrayRef<IValue> arguments) {
  const auto& schema = op.schema();
  if (schema.name() == "aten::index") return false; // its masks have gone to `nonzero` before
  for (size_t k = 0; k < arguments.size(); ++k) {
    if (schema.arguments()[k].name() == "indices" && arguments[k].isList()) {
      auto indices = arguments[k].toListRef();
      return std::any_of(indices.begin(), indices.end(), is_mask);
    }
    if (schema.arguments()[k].name() == "output_size" && !arguments[k].isNone()) return false;
  }
  if (op.hasTag(at::Tag::data_dependent_output) || op.hasTag(at::Tag::dynamic_output_shape)) {
    return true;
  }
  static const std::vector<std::string> checked = {
      "aten::_linalg_eigh", "aten::_linalg_svd", "aten::_linalg_eigvals", "aten::linalg_eig"};
  return std::find(checked.begin(), checked.end(), schema.name()) != checked.end();
}

// ---- Operators ----------------------------------------------------------------------------------

class Call {
 public:
  explicit Call(const c10::OperatorHandle& op) : op_(op) {}

  IValue enter(const c10::Argument& argument, const IValue& value) {
    if (value.isTensor()) return enter_tensor(argument, value.toTensor(), /*alone=*/true);
    if (value.isTensorList()) {
      c10::List<at::Tensor> tensors;
      for (const at::Tensor& tensor : value.toTensorList()) {
        tensors.push_back(enter_tensor(argument, tensor, /*alone=*/false));
      }
      return tensors;
    }
    if (value.isOptionalTensorList()) { // indices, which may stay on the host
      c10::List<std::optional<at::Tensor>> tensors;
      for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorList()) {
        tensors.push_back(tensor && on_device(*tensor) ? pair(*tensor) : tensor);
      }
      return tensors;
    }
    if (value.isStorage() && value.toStorage().device_type() == kDevice.type()) {
      storages_.push_back(value.toStorage());
      return host_of(value.toStorage());
    }
    if (value.isDevice()) return IValue(c10::Device(c10::kCPU));
    return value;
  }

  // What the kernel changed of its operands, besides their elements.
  void settle() {
    for (auto& storage : storages_) {
      auto host = host_of(storage);
      if (host.data() != storage.data() || host.nbytes() != storage.nbytes()) {
        storage.set_data_ptr_noswap(owning(host));
        storage.set_nbytes(host.nbytes());
      }
    }
    for (auto& [host, device] : tensors_) {
      auto* changed = device.unsafeGetTensorImpl();
      changed->set_storage_keep_dtype(storage_for(host.storage()));
      changed->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
    }
  }

  IValue leave(const IValue& value) {
    if (value.isTensor()) return leave_tensor(value.toTensor());
    if (value.isTensorList()) {
      c10::List<at::Tensor> tensors;
      for (const at::Tensor& tensor : value.toTensorList()) tensors.push_back(leave_tensor(tensor));
      return tensors;
    }
    return value;
  }

 private:
  at::Tensor enter_tensor(const c10::Argument& argument, const at::Tensor& tensor, bool alone) {
    if (on_device(tensor)) return pair(tensor);
    bool written = argument.alias_info() != nullptr && argument.alias_info()->isWrite();
    TORCH_CHECK(
        !tensor.defined() || (alone && tensor.dim() == 0 && !written),
        "Expected all tensors to be on the same device, but found ", kDevice, " and ",
        tensor.device(), "! (argument ", argument.name(), " of ", op_.schema().name(), ", shape ",
        tensor.sizes(), ")");
    return tensor;
  }

  at::Tensor pair(const at::Tensor& tensor) {
    TORCH_CHECK(tensor.layout() == at::kStrided, "The emulated device knows strided tensors only.");
    storages_.push_back(tensor.storage());
    tensors_.emplace_back(host_tensor(tensor), tensor);
    return tensors_.back().first;
  }

  Storage storage_for(const Storage& host) {
    for (const auto& storage : storages_) {
      if (host_of(storage).unsafeGetStorageImpl() == host.unsafeGetStorageImpl()) return storage;
    }
    storages_.push_back(device_of(host));
    return storages_.back();
  }

  at::Tensor leave_tensor(const at::Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    for (auto& [host, device] : tensors_) {
      if (host.is_same(tensor)) return device;
    }
    return over(storage_for(tensor.storage()), tensor, c10::DispatchKey::PrivateUse1);
  }

  const c10::OperatorHandle& op_;
  std::vector<Storage> storages_;
  std::vector<std::pair<at::Tensor, at::Tensor>> tensors_;
};

void on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const size_t first = stack->size() - schema.arguments().size();
  if (waits(op, at::ArrayRef<IValue>(*stack).slice(first))) write_down(schema.name());
  Call call(op);
  for (size_t k = 0; k < schema.arguments().size(); ++k) {
    (*stack)[first + k] = call.enter(schema.arguments()[k], (*stack)[first + k]);
  }
  op.redispatchBoxed(kHostKey, stack);
  call.settle();
  for (size_t k = stack->size() - schema.returns().size(); k < stack->size(); ++k) {
    (*stack)[k] = call.leave((*stack)[k]);
  }
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  if (!on_device(to)) write_down("aten::_copy_from");
  auto target = on_device(to) ? host_tensor(to) : to;
  target.copy_(on_device(from) ? host_tensor(from) : from, non_blocking);
  return to;
}

// One without a storage would be no tensor of this device.
at::Tensor zero(
    c10::SymIntArrayRef size, std::optional<at::ScalarType> kind, std::optional<at::Layout> layout,
    std::optional<at::Device>, std::optional<bool> pinned) {
  return at::zeros_symint(size, kind, layout, kDevice, pinned);
}

// ---- The device ---------------------------------------------------------------------------------

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::PrivateUse1> {
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  c10::Stream getStream(c10::Device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, kDevice);
  }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return getStream(kDevice); }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return at::detail::createCPUGenerator();
  }
} hooks;

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

const bool registered = [] {
  c10::SetAllocator(kDevice.type(), &memory);
  at::RegisterPrivateUse1HooksInterface(&hooks);
  return true;
}();

std::vector<std::string> take_reads() {
  std::lock_guard<std::mutex> guard(lock);
  return std::exchange(reads, {});
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&on_host>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("_copy_from", &copy_from);
  library.impl("_efficientzerotensor", &zero);
  // Torch's own kernels of these ask which library of convolutions the device has.
  library.impl("convolution", torch::CppFunction::makeFromBoxedFunction<&on_host>());
  library.impl("convolution_backward", torch::CppFunction::makeFromBoxedFunction<&on_host>());
}

// The fallbacks of both keys would copy first.
TORCH_LIBRARY_IMPL(aten, Conjugate, library) {
  library.impl("_copy_from", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, Negative, library) {
  library.impl("_copy_from", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY(emulated_device, library) {
  library.def("take_reads() -> str[]", &take_reads);
}

} // namespace
