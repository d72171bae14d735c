// The part of the CUDA runtime that csrc/cuda and its tests use, on the CPU. See ../README.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(threads)
#define CUDART_CB
#define CUDART_VERSION 13000

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorNotReady = 600,
  cudaErrorAssert = 710,
  cudaErrorHostMemoryAlreadyRegistered = 712,
  cudaErrorHostMemoryNotRegistered = 713,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotPermitted = 800,
};
enum cudaMemcpyKind { cudaMemcpyDefault = 4 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrCanUseHostPointerForRegisteredMem = 91,
};
enum cudaMemcpySrcAccessOrder { cudaMemcpySrcAccessOrderStream = 1 };
enum cudaMemLocationType { cudaMemLocationTypeInvalid = 0 };
constexpr unsigned cudaMemcpyFlagPreferOverlapWithCompute = 1;
constexpr unsigned cudaEventDisableTiming = 2;
constexpr unsigned cudaStreamNonBlocking = 1;
constexpr unsigned cudaHostRegisterPortable = 1, cudaHostRegisterMapped = 2;

struct cudaMemLocation {
  cudaMemLocationType type;
  int id;
};
struct cudaMemcpyAttributes {
  cudaMemcpySrcAccessOrder srcAccessOrder;
  cudaMemLocation srcLocHint, dstLocHint;
  unsigned flags;
};

using cudaStream_t = struct EmulatedStream*;
using cudaEvent_t = struct EmulatedEvent*;
using cudaHostFn_t = void (*)(void*);
#define cudaStreamLegacy (reinterpret_cast<cudaStream_t>(1))

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct cudaLaunchAttribute {};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

cudaError_t cudaGetLastError();
const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaHostRegister(void* address, size_t bytes, unsigned flags);
cudaError_t cudaHostUnregister(void* address);
cudaError_t cudaMallocHost(void** address, size_t bytes);
cudaError_t cudaFreeHost(void* address);
cudaError_t cudaMalloc(void** address, size_t bytes);
cudaError_t cudaFree(void* address);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemcpyBatchAsync(void* const* to, const void* const* from, const size_t* bytes,
                                 size_t count, cudaMemcpyAttributes* attributes,
                                 size_t* attribute_indices, size_t num_attributes,
                                 cudaStream_t stream);

namespace emulated {

// What a kernel's code sees of the thread that runs it.
struct Place {
  dim3 thread, block, block_size, grid_size;
};
const Place& place();
uint32_t shuffle_xor(uint32_t mask, uint32_t value, int distance);
[[noreturn]] void fail_assert(const char* what, const char* file, int line);

// A kernel with its arguments, as one call for each of its threads.
struct Kernel {
  virtual ~Kernel() = default;
  virtual void run_thread() const = 0;
};
cudaError_t launch(const cudaLaunchConfig_t& config, const Kernel* kernel);

template <class Argument>
struct Bound final : Kernel {
  Bound(void (*kernel)(Argument), const Argument& argument) : kernel(kernel), argument(argument) {}
  void run_thread() const override { kernel(argument); }
  void (*kernel)(Argument);
  std::remove_const_t<Argument> argument;
};

}  // namespace emulated

template <class Argument, class Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Argument),
                               Given&& argument) {
  return emulated::launch(*config, new emulated::Bound<Argument>(kernel, argument));
}

#define threadIdx (emulated::place().thread)
#define blockIdx (emulated::place().block)
// No macros: the configuration of a launch has members of these names.
namespace emulated {
template <dim3 Place::* size, unsigned dim3::* axis>
struct Axis {
  operator unsigned() const { return place().*size.*axis; }
};
template <dim3 Place::* size>
struct Axes {
  Axis<size, &dim3::x> x;
  Axis<size, &dim3::y> y;
};
}  // namespace emulated
inline constexpr emulated::Axes<&emulated::Place::block_size> blockDim{};
inline constexpr emulated::Axes<&emulated::Place::grid_size> gridDim{};

inline uint32_t __shfl_xor_sync(uint32_t mask, uint32_t value, int distance) {
  return emulated::shuffle_xor(mask, value, distance);
}
inline float __double2float_rn(double x) {
  return static_cast<float>(x);
}
inline unsigned max(unsigned a, unsigned b) {
  return a > b ? a : b;
}
