package io.tidemark.delta;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.util.Arrays;
import java.util.Random;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.io.compress.CompressionCodec;
import org.apache.hadoop.io.compress.CompressionCodecFactory;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/** Hadoop takes it for {@code .zst}, in place of its own, and a torn file is an error. */
class ZstdCodecTest {
    private final byte[] body = new byte[1 << 20];
    private final ByteArrayOutputStream stored = new ByteArrayOutputStream();
    private CompressionCodec codec;

    @BeforeEach
    void aFileOfTwoFrames() throws IOException {
        Configuration conf = new Configuration(false);
        conf.set("io.compression.codecs", "org.apache.hadoop.io.compress.GzipCodec," + ZstdCodec.class.getName());
        codec = new CompressionCodecFactory(conf).getCodec(new Path("s3a://raw/00000000000000000000.ndjson.zst"));
        new Random(1).nextBytes(body);
        int half = body.length / 2;
        for (byte[] frame : new byte[][] {Arrays.copyOf(body, half), Arrays.copyOfRange(body, half, body.length)}) {
            try (OutputStream out = codec.createOutputStream(stored)) {
                out.write(frame);
            }
        }
    }

    private byte[] read(byte[] file) throws IOException {
        try (InputStream in = codec.createInputStream(new ByteArrayInputStream(file))) {
            return in.readAllBytes();
        }
    }

    @Test
    void allFramesAreRead() throws IOException {
        assertInstanceOf(ZstdCodec.class, codec);
        assertArrayEquals(body, read(stored.toByteArray()));
    }

    @Test
    void aTornFileIsAnError() {
        byte[] torn = Arrays.copyOf(stored.toByteArray(), stored.size() - 1);
        assertThrows(IOException.class, () -> read(torn));
    }
}
