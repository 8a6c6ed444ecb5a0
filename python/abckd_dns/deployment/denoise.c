/* Denoises sound with a model of `abckd-dns export`, in float or in int8, by onnxruntime's C API.

   Build, with onnxruntime's release for your system unpacked in ORT:
       cc -O2 -I ORT/include denoise.c -o denoise -L ORT/lib -lonnxruntime -Wl,-rpath,ORT/lib
   Run; sound is raw, mono, 16 kHz, signed 16 bit, as from `ffmpeg -i in.wav -ac 1 -ar 16000 -f s16le -`:
       ./denoise model.onnx < noisy.raw > enhanced.raw

   All sizes are read from the model: samples (1, HOP) and any states come in, enhanced samples and the next states go
   out. The output has the length of the input; the first HOP samples, which come before the beginning, are left out. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "onnxruntime_c_api.h"

#define LARGEST 256 /* inputs and outputs */

static const OrtApi *ort;

static void check(OrtStatus *status) {
    if (status != NULL) {
        fprintf(stderr, "denoise: %s\n", ort->GetErrorMessage(status));
        exit(1);
    }
}

/* Elements of a tensor whose free axes, the batch, are 1. */
static size_t shape_of(OrtTypeInfo *type, int64_t *shape, size_t *rank) {
    const OrtTensorTypeAndShapeInfo *info;
    check(ort->CastTypeInfoToTensorInfo(type, &info));
    check(ort->GetDimensionsCount(info, rank));
    if (*rank > 8) {
        fprintf(stderr, "denoise: a tensor of %zu axes\n", *rank);
        exit(1);
    }
    check(ort->GetDimensions(info, shape, *rank));
    size_t count = 1;
    for (size_t axis = 0; axis < *rank; axis++) {
        if (shape[axis] < 1) shape[axis] = 1;
        count *= (size_t)shape[axis];
    }
    ort->ReleaseTypeInfo(type);
    return count;
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: denoise MODEL.onnx < noisy.raw > enhanced.raw\n");
        return 2;
    }
    ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (ort == NULL) {
        fprintf(stderr, "denoise: the library is older than the header\n");
        return 1;
    }
    OrtEnv *env;
    OrtSessionOptions *options;
    OrtSession *session;
    OrtAllocator *allocator;
    OrtMemoryInfo *memory;
    check(ort->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "denoise", &env));
    check(ort->CreateSessionOptions(&options));
    check(ort->SetIntraOpNumThreads(options, 1));
    check(ort->CreateSession(env, argv[1], options, &session));
    check(ort->GetAllocatorWithDefaultOptions(&allocator));
    check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));

    size_t count;
    check(ort->SessionGetInputCount(session, &count));
    if (count < 1 || count > LARGEST) {
        fprintf(stderr, "denoise: a model of %zu inputs\n", count);
        return 1;
    }
    /* Output i is what input i becomes: enhanced for samples, next.NAME for state.NAME. */
    char *inputs[LARGEST], *outputs[LARGEST];
    float *values[LARGEST];
    size_t sizes[LARGEST];
    OrtValue *tensors[LARGEST], *results[LARGEST];
    for (size_t i = 0; i < count; i++) {
        OrtTypeInfo *type;
        int64_t shape[8];
        size_t rank;
        check(ort->SessionGetInputName(session, i, allocator, &inputs[i]));
        check(ort->SessionGetOutputName(session, i, allocator, &outputs[i]));
        check(ort->SessionGetInputTypeInfo(session, i, &type));
        sizes[i] = shape_of(type, shape, &rank);
        values[i] = calloc(sizes[i], sizeof(float));
        if (values[i] == NULL) return 1;
        check(ort->CreateTensorWithDataAsOrtValue(memory, values[i], sizes[i] * sizeof(float), shape, rank,
                                                  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &tensors[i]));
    }

    size_t hop = sizes[0], skipped = 0, owed = 0;
    int16_t *pcm = malloc(hop * sizeof(int16_t));
    if (pcm == NULL) return 1;
    for (;;) {
        size_t got = fread(pcm, sizeof(int16_t), hop, stdin);
        owed += got;
        if (owed == 0) break;
        for (size_t i = 0; i < hop; i++) values[0][i] = i < got ? (float)pcm[i] / 32768.0f : 0.0f;
        for (size_t i = 0; i < count; i++) results[i] = NULL;
        check(ort->Run(session, NULL, (const char *const *)inputs, (const OrtValue *const *)tensors, count,
                       (const char *const *)outputs, count, results));
        for (size_t i = 0; i < count; i++) {
            float *result;
            check(ort->GetTensorMutableData(results[i], (void **)&result));
            if (i == 0) {
                if (skipped) {
                    size_t given = owed < hop ? owed : hop;
                    for (size_t k = 0; k < given; k++) {
                        float x = result[k] * 32768.0f;
                        pcm[k] = (int16_t)(x > 32767.0f ? 32767.0f : x < -32768.0f ? -32768.0f : x);
                    }
                    fwrite(pcm, sizeof(int16_t), given, stdout);
                    owed -= given;
                }
                skipped = 1;
            } else {
                memcpy(values[i], result, sizes[i] * sizeof(float));
            }
            ort->ReleaseValue(results[i]);
        }
    }
    for (size_t i = 0; i < count; i++) {
        ort->ReleaseValue(tensors[i]);
        free(values[i]);
        check(ort->AllocatorFree(allocator, inputs[i]));
        check(ort->AllocatorFree(allocator, outputs[i]));
    }
    free(pcm);
    ort->ReleaseMemoryInfo(memory);
    ort->ReleaseSession(session);
    ort->ReleaseSessionOptions(options);
    ort->ReleaseEnv(env);
    return 0;
}
