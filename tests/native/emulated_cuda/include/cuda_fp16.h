// Half precision of device code: a type of its own with CUDA's conversions.
#pragma once

#include <cstdint>
#include <cstring>

struct alignas(2) __half {
  uint16_t bits;
};
static_assert(__FLT16_MANT_DIG__ == 11, "needs a compiler with _Float16");

inline float __half2float(__half x) {
  _Float16 value;
  std::memcpy(&value, &x, sizeof value);
  return static_cast<float>(value);
}
// NaN becomes the one that devices give.
inline __half __float2half_rn(float x) {
  const _Float16 value = static_cast<_Float16>(x);
  __half out;
  std::memcpy(&out, &value, sizeof out);
  return x == x ? out : __half{0x7fff};
}
