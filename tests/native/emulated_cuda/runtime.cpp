// The calls of the CUDA runtime.
#include <cuda_runtime.h>
#include <emulated.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "grid.h"
#include "memory.h"
#include "schedule.h"

namespace emulated {
namespace {

constexpr int kDevices = 2;
constexpr int kProcessors = 2;  // of a device: grids are small then, and rows go over them in turns
constexpr unsigned kMostThreads = 1024, kMostBlocks = 0x7fffffff;

thread_local int device_of_thread = 0;
thread_local cudaError_t last_error = cudaSuccess;
cudaError_t sticky = cudaSuccess;  // a kernel failed: no call works any more
const char* assertion = "";
EmulatedStream default_streams[kDevices] = {{0, true, {}}, {1, true, {}}};
std::vector<EmulatedStream*> made;

// Every call begins with it: a function of the host on a stream may call nothing.
cudaError_t refuse() {
  return on_device_thread() ? cudaErrorNotPermitted : sticky;
}

cudaError_t note(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

bool is_default(cudaStream_t stream) {
  return stream == nullptr || stream == cudaStreamLegacy;
}

EmulatedStream* resolve(cudaStream_t stream) {
  if (is_default(stream)) return &default_streams[device_of_thread];
  return std::find(made.begin(), made.end(), stream) == made.end() ? nullptr : stream;
}

// The default stream and those that are not made with cudaStreamNonBlocking follow each other.
std::vector<Task*> implied(const EmulatedStream* stream) {
  std::vector<Task*> after;
  const auto add = [&](const EmulatedStream* other) {
    if (other != stream && other->device == stream->device && !other->queue.empty()) {
      after.push_back(other->queue.back());
    }
  };
  EmulatedStream* const legacy = &default_streams[stream->device];
  if (stream == legacy) {
    for (const EmulatedStream* other : made) {
      if (other->blocking) add(other);
    }
  } else if (stream->blocking) {
    add(legacy);
  }
  return after;
}

Task* give(EmulatedStream* stream, Work* work, bool sees_device, Task* event = nullptr) {
  std::vector<Task*> after = implied(stream);
  if (event != nullptr) after.push_back(event);
  return enqueue(stream, work, std::move(after), sees_device);
}

struct Launch final : Work {
  Launch(const cudaLaunchConfig_t& config, const Kernel* kernel) : config(config), kernel(kernel) {}
  ~Launch() override { delete kernel; }
  void run(Random& random) override {
    if (sticky != cudaSuccess) return;
    const char* const wrong = run_grid(*kernel, config.gridDim, config.blockDim, random);
    if (wrong == nullptr) return;
    assertion = wrong;
    sticky = cudaErrorAssert;
  }
  cudaLaunchConfig_t config;
  const Kernel* kernel;
};

struct HostFunction final : Work {
  HostFunction(cudaHostFn_t function, void* data) : function(function), data(data) {}
  void run(Random&) override { function(data); }
  cudaHostFn_t function;
  void* data;
};

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

// Copies of one call, in any order.
struct Copies final : Work {
  explicit Copies(std::vector<Copy> copies) : copies(std::move(copies)) {}
  void run(Random& random) override {
    random.shuffle(copies.data(), copies.size());
    for (const Copy& each : copies) std::memcpy(each.to, each.from, each.bytes);
  }
  std::vector<Copy> copies;
};

// A copy from pageable memory, which is read in the call itself.
struct StagedCopy final : Work {
  explicit StagedCopy(const Copy& copy) : to(copy.to), kept(copy.bytes) {
    std::memcpy(kept.data(), copy.from, copy.bytes);
  }
  void run(Random&) override { std::memcpy(to, kept.data(), kept.size()); }
  void* to;
  std::vector<char> kept;
};

bool is_pageable(const void* address, size_t bytes) {
  return kind_of(address, bytes) == Kind::pageable;
}

cudaError_t copy(const Copy& copy, EmulatedStream* stream) {
  if (copy.bytes == 0) return cudaSuccess;
  if (copy.to == nullptr || copy.from == nullptr) return cudaErrorInvalidValue;
  const bool to = is_pageable(copy.to, copy.bytes), from = is_pageable(copy.from, copy.bytes);
  if (to && from) return cudaErrorInvalidValue;  // nothing that csrc/cuda has a use for
  if (from) {
    if (!stream->queue.empty()) finish_task(stream->queue.back());
    give(stream, new StagedCopy(copy), true);
  } else if (to) {
    std::vector<char> kept(copy.bytes);
    finish_task(give(stream, new Copies({{kept.data(), copy.from, copy.bytes}}), true));
    std::memcpy(copy.to, kept.data(), copy.bytes);
  } else {
    give(stream, new Copies({copy}), true);
  }
  return cudaSuccess;
}

}  // namespace

void reset(uint64_t seed) {
  const Lock lock;
  finish_all();
  reset_schedule(seed);
  reset_memory();
  for (EmulatedStream* stream : made) delete stream;
  made.clear();
  sticky = last_error = cudaSuccess;
  assertion = "";
  device_of_thread = 0;
}

void finish() {
  const Lock lock;
  finish_all();
}

std::string failed_assertion() {
  const Lock lock;
  return assertion;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const Kernel* kernel) {
  const Lock lock;
  const auto refused = [&](cudaError_t error) {
    delete kernel;
    return note(error);
  };
  if (const cudaError_t error = refuse()) return refused(error);
  const dim3 grid = config.gridDim, block = config.blockDim;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMostThreads || grid.x == 0 || grid.x > kMostBlocks ||
      grid.y != 1 || grid.z != 1) {
    return refused(cudaErrorInvalidConfiguration);
  }
  EmulatedStream* const stream = resolve(config.stream);
  if (stream == nullptr || stream->device != device_of_thread) {
    return refused(cudaErrorInvalidResourceHandle);
  }
  give(stream, new Launch(config, kernel), true);
  return cudaSuccess;
}

}  // namespace emulated

using namespace emulated;

cudaError_t cudaGetLastError() {
  const Lock lock;
  const cudaError_t error = sticky != cudaSuccess ? sticky : last_error;
  last_error = cudaSuccess;
  return error;
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorAssert:
      return "cudaErrorAssert";
    case cudaErrorHostMemoryAlreadyRegistered:
      return "cudaErrorHostMemoryAlreadyRegistered";
    case cudaErrorHostMemoryNotRegistered:
      return "cudaErrorHostMemoryNotRegistered";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorNotPermitted:
      return "cudaErrorNotPermitted";
  }
  return "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) {
  return cudaGetErrorName(error);
}

cudaError_t cudaGetDevice(int* device) {
  const Lock lock;
  *device = device_of_thread;
  return note(refuse());
}
cudaError_t cudaSetDevice(int device) {
  const Lock lock;
  if (device < 0 || device >= kDevices) return note(cudaErrorInvalidDevice);
  if (const cudaError_t error = refuse()) return note(error);
  device_of_thread = device;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  const Lock lock;
  if (device < 0 || device >= kDevices) return note(cudaErrorInvalidDevice);
  *value = attribute == cudaDevAttrMultiProcessorCount ? kProcessors : 1;
  return note(refuse());
}
cudaError_t cudaDeviceSynchronize() {
  const Lock lock;
  if (const cudaError_t error = refuse()) return note(error);
  finish_device(device_of_thread);
  return note(sticky);
}

cudaError_t cudaHostRegister(void* address, size_t bytes, unsigned) {
  const Lock lock;
  const cudaError_t error = refuse();
  return note(error != cudaSuccess ? error : lock_host(address, bytes));
}
cudaError_t cudaHostUnregister(void* address) {
  const Lock lock;
  const cudaError_t error = refuse();
  return note(error != cudaSuccess ? error : unlock_host(address));
}
cudaError_t cudaMallocHost(void** address, size_t bytes) {
  *address = pageable(bytes);
  return cudaHostRegister(*address, std::max<size_t>(bytes, 1), 0);
}
cudaError_t cudaFreeHost(void* address) {
  if (const cudaError_t error = cudaDeviceSynchronize()) return error;
  if (const cudaError_t error = cudaHostUnregister(address)) return error;
  free_pageable(address);
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** address, size_t bytes) {
  const Lock lock;
  const cudaError_t error = refuse();
  return note(error != cudaSuccess ? error : allocate_device(address, bytes, device_of_thread));
}
// Unlike CUDA's own, it waits for nothing: as an allocator that hands out the memory again.
cudaError_t cudaFree(void* address) {
  const Lock lock;
  const cudaError_t error = refuse();
  return note(error != cudaSuccess ? error : free_device(address));
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  const Lock lock;
  if (const cudaError_t error = refuse()) return note(error);
  *stream = new EmulatedStream{device_of_thread, (flags & cudaStreamNonBlocking) == 0, {}};
  made.push_back(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  const Lock lock;
  if (const cudaError_t error = refuse()) return note(error);
  EmulatedStream* const stream = resolve(handle);
  if (stream == nullptr) return note(cudaErrorInvalidResourceHandle);
  if (!stream->queue.empty()) finish_task(stream->queue.back());
  return note(sticky);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  const Lock lock;
  if (const cudaError_t error = refuse()) return note(error);
  *event = new EmulatedEvent{device_of_thread};
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;  // tasks that wait for it know the task that it recorded
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  const Lock lock;
  if (const cudaError_t error = refuse()) return note(error);
  EmulatedStream* const stream = resolve(handle);
  if (stream == nullptr || stream->device != event->device) {
    return note(cudaErrorInvalidResourceHandle);
  }
  event->recorded = give(stream, nullptr, false);
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Lock lock;
  if (const cudaError_t error = refuse()) return note(error);
  if (event->recorded != nullptr) finish_task(event->recorded);
  return note(sticky);
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const Lock lock;
  if (const cudaError_t error = refuse()) return note(error);
  if (event->recorded == nullptr) return cudaSuccess;
  return has_finished(event->recorded) ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
  const Lock lock;
  if (const cudaError_t error = refuse()) return note(error);
  EmulatedStream* const stream = resolve(handle);
  if (stream == nullptr) return note(cudaErrorInvalidResourceHandle);
  if (event->recorded != nullptr) give(stream, nullptr, false, event->recorded);
  return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* data) {
  const Lock lock;
  if (const cudaError_t error = refuse()) return note(error);
  EmulatedStream* const stream = resolve(handle);
  if (stream == nullptr) return note(cudaErrorInvalidResourceHandle);
  give(stream, new HostFunction(function, data), false);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t handle) {
  const Lock lock;
  if (const cudaError_t error = refuse()) return note(error);
  EmulatedStream* const stream = resolve(handle);
  if (stream == nullptr) return note(cudaErrorInvalidResourceHandle);
  return note(copy({to, from, bytes}, stream));
}

cudaError_t cudaMemcpyBatchAsync(void* const* to, const void* const* from, const size_t* bytes,
                                 size_t count, cudaMemcpyAttributes* attributes,
                                 size_t* attribute_indices, size_t num_attributes,
                                 cudaStream_t handle) {
  const Lock lock;
  if (const cudaError_t error = refuse()) return note(error);
  EmulatedStream* const stream = resolve(handle);
  if (stream == nullptr) return note(cudaErrorInvalidResourceHandle);
  if (is_default(handle) || count == 0 || num_attributes != 1 || attribute_indices[0] != 0 ||
      attributes[0].srcAccessOrder != cudaMemcpySrcAccessOrderStream) {
    return note(cudaErrorInvalidValue);
  }
  std::vector<Copy> copies;
  for (size_t i = 0; i < count; ++i) {
    if (bytes[i] == 0 || is_pageable(to[i], bytes[i]) || is_pageable(from[i], bytes[i])) {
      return note(cudaErrorInvalidValue);
    }
    copies.push_back({to[i], from[i], bytes[i]});
  }
  give(stream, new Copies(std::move(copies)), true);
  return cudaSuccess;
}
