// The emulated runtime for Python: streams and events as handles, for lanes of the transfer engine.
#include <cuda_runtime.h>
#include <emulated.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

namespace {

template <class T>
T at(uintptr_t address) {
  return reinterpret_cast<T>(address);
}

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorName(status));
}

uintptr_t stream() {
  cudaStream_t made;
  check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking));
  return reinterpret_cast<uintptr_t>(made);
}

uintptr_t record(uintptr_t stream) {
  cudaEvent_t event;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  check(cudaEventRecord(event, at<cudaStream_t>(stream)));
  return reinterpret_cast<uintptr_t>(event);
}

void wait(uintptr_t stream, uintptr_t event) {
  check(cudaStreamWaitEvent(at<cudaStream_t>(stream), at<cudaEvent_t>(event), 0));
}

void synchronize(uintptr_t event) {
  check(cudaEventSynchronize(at<cudaEvent_t>(event)));
}

bool is_done(uintptr_t event) {
  const cudaError_t status = cudaEventQuery(at<cudaEvent_t>(event));
  if (status != cudaErrorNotReady) check(status);
  return status == cudaSuccess;
}

void copy(uintptr_t to, uintptr_t from, size_t bytes, uintptr_t stream) {
  check(cudaMemcpyAsync(at<void*>(to), at<void*>(from), bytes, cudaMemcpyDefault,
                        at<cudaStream_t>(stream)));
}

void lock(uintptr_t address, size_t bytes) {
  check(cudaHostRegister(at<void*>(address), bytes, 0));
}
void unlock(uintptr_t address) {
  check(cudaHostUnregister(at<void*>(address)));
}
bool is_locked(uintptr_t address, size_t bytes) {
  return emulated::is_page_locked(at<void*>(address), bytes);
}

}  // namespace

PYBIND11_MODULE(_emulated, m) {
  const pybind11::call_guard<pybind11::gil_scoped_release> unlocked;
  m.def("reset", &emulated::reset, unlocked);
  m.def("finish", &emulated::finish, unlocked);
  m.def("trust_host_memory", &emulated::trust_host_memory);
  m.def("stream", &stream, unlocked);
  m.def("record", &record, unlocked);
  m.def("wait", &wait, unlocked);
  m.def("synchronize", &synchronize, unlocked);
  m.def("is_done", &is_done, unlocked);
  m.def("copy", &copy, unlocked);
  m.def("lock", &lock, unlocked);
  m.def("unlock", &unlock, unlocked);
  m.def("is_locked", &is_locked, unlocked);
}
