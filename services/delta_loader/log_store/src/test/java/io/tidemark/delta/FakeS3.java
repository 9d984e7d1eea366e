package io.tidemark.delta;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.URI;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.HashMap;
import java.util.Map;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.Abortable;
import org.apache.hadoop.fs.FSDataInputStream;
import org.apache.hadoop.fs.FSDataOutputStream;
import org.apache.hadoop.fs.FSDataOutputStreamBuilder;
import org.apache.hadoop.fs.FSInputStream;
import org.apache.hadoop.fs.FileStatus;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.fs.permission.FsPermission;
import org.apache.hadoop.fs.s3a.RemoteFileChangedException;
import org.apache.hadoop.util.Progressable;

/** A bucket as S3A shows it: a file is there once its stream has been closed, and a condition is judged at that moment. */
public class FakeS3 extends FileSystem {
    /** What one close does instead of simply creating the file. */
    interface Close {
        void run(Create create) throws IOException;
    }

    interface Create {
        void now() throws IOException;
    }

    final Map<String, byte[]> files = new HashMap<>();
    final Deque<Close> closes = new ArrayDeque<>();
    final Deque<IOException> reads = new ArrayDeque<>();
    IOException write;
    boolean honours = true;
    int conditional;
    int plain;
    int closed;
    int aborted;
    int opened;
    private URI uri;

    @Override
    public void initialize(URI name, Configuration conf) throws IOException {
        super.initialize(name, conf);
        uri = URI.create(name.getScheme() + "://" + name.getAuthority());
    }

    @Override
    public URI getUri() {
        return uri;
    }

    @Override
    public FSDataInputStream open(Path path, int bufferSize) throws IOException {
        opened++;
        if (!reads.isEmpty()) {
            throw reads.remove();
        }
        byte[] body = files.get(path.getName());
        if (body == null) {
            throw new FileNotFoundException(path.toString());
        }
        return new FSDataInputStream(new Stored(body));
    }

    @Override
    public FSDataOutputStreamBuilder<?, ?> createFile(Path path) {
        return new Builder(this, path);
    }

    @Override
    public FSDataOutputStream create(
            Path path, FsPermission permission, boolean overwrite, int bufferSize, short replication, long blockSize,
            Progressable progress) throws IOException {
        plain++;
        return new FSDataOutputStream(new Upload(path.getName(), false), null);
    }

    private final class Upload extends OutputStream implements Abortable {
        private final String name;
        private final boolean isConditional;
        private final ByteArrayOutputStream body = new ByteArrayOutputStream();

        Upload(String name, boolean isConditional) {
            this.name = name;
            this.isConditional = isConditional;
        }

        @Override
        public void write(int one) throws IOException {
            write(new byte[] {(byte) one}, 0, 1);
        }

        @Override
        public void write(byte[] bytes, int from, int length) throws IOException {
            if (write != null) {
                throw write;
            }
            body.write(bytes, from, length);
        }

        @Override
        public void close() throws IOException {
            closed++;
            Create create = () -> {
                if (isConditional && honours && files.containsKey(name)) {
                    throw new RemoteFileChangedException(name, "PUT", "412");
                }
                files.put(name, body.toByteArray());
            };
            if (closes.isEmpty()) {
                create.now();
            } else {
                closes.remove().run(create);
            }
        }

        @Override
        public AbortableResult abort() {
            aborted++;
            return null;
        }
    }

    private static final class Builder extends FSDataOutputStreamBuilder<FSDataOutputStream, Builder> {
        Builder(FileSystem fs, Path path) {
            super(fs, path);
        }

        @Override
        public Builder getThisBuilder() {
            return this;
        }

        @Override
        public FSDataOutputStream build() throws IOException {
            FakeS3 s3 = (FakeS3) getFS();
            if (!getMandatoryKeys().contains("fs.option.create.conditional.overwrite")) {
                throw new IllegalArgumentException("no condition");
            }
            s3.conditional++;
            return new FSDataOutputStream(s3.new Upload(getPath().getName(), true), null);
        }
    }

    private static final class Stored extends FSInputStream {
        private final InputStream body;

        Stored(byte[] body) {
            this.body = new ByteArrayInputStream(body);
        }

        @Override
        public int read() throws IOException {
            return body.read();
        }

        @Override
        public void seek(long position) {
            throw new UnsupportedOperationException();
        }

        @Override
        public long getPos() {
            throw new UnsupportedOperationException();
        }

        @Override
        public boolean seekToNewSource(long target) {
            return false;
        }
    }

    @Override
    public FSDataOutputStream append(Path path, int bufferSize, Progressable progress) {
        throw new UnsupportedOperationException();
    }

    @Override
    public boolean rename(Path from, Path to) {
        throw new UnsupportedOperationException();
    }

    @Override
    public boolean delete(Path path, boolean recursive) {
        throw new UnsupportedOperationException();
    }

    @Override
    public FileStatus[] listStatus(Path path) {
        throw new UnsupportedOperationException();
    }

    @Override
    public void setWorkingDirectory(Path path) {}

    @Override
    public Path getWorkingDirectory() {
        return new Path("/");
    }

    @Override
    public boolean mkdirs(Path path, FsPermission permission) {
        throw new UnsupportedOperationException();
    }

    @Override
    public FileStatus getFileStatus(Path path) {
        throw new UnsupportedOperationException();
    }
}
