// bfloat16 of device code: a type of its own with CUDA's conversions.
#pragma once

#include <cstdint>
#include <cstring>

struct alignas(2) __nv_bfloat16 {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}
// Round to nearest, ties to even; NaN becomes the one that devices give.
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t kept = bits >> 16, rest = bits & 0xffff;
  const bool up = rest > 0x8000 || (rest == 0x8000 && (kept & 1) != 0);
  return x == x ? __nv_bfloat16{static_cast<uint16_t>(kept + up)} : __nv_bfloat16{0x7fff};
}
