package io.tidemark.delta;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InterruptedIOException;
import java.net.SocketTimeoutException;
import java.nio.charset.StandardCharsets;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.Files;
import java.util.Iterator;
import java.util.List;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.Stream;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.Path;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/** Each failure of a commit's PUT, and what the store may then say. */
class ConditionalS3LogStoreTest {
    private static final AtomicInteger BUCKETS = new AtomicInteger();
    private static final byte[] OURS = "one\nzwölf\n".getBytes(StandardCharsets.UTF_8);
    private static final byte[] THEIRS = "theirs\n".getBytes(StandardCharsets.UTF_8);
    private static final String NAME = "00000000000000000007.json";

    private final Configuration conf = new Configuration(false);
    private ConditionalS3LogStore store;
    private Path path;
    private FakeS3 s3;

    @BeforeEach
    void aBucketThatHasBeenSeenToHonourTheCondition() throws IOException {
        aFreshBucket();
        store.write(new Path(path.getParent(), "00000000000000000006.json"), actions(), false, conf);
        s3.conditional = s3.closed = s3.opened = 0;
    }

    private void aFreshBucket() throws IOException {
        conf.set("fs.fake.impl", FakeS3.class.getName());
        store = new ConditionalS3LogStore(conf);
        path = new Path("fake://bucket-" + BUCKETS.incrementAndGet() + "/table/_delta_log/" + NAME);
        s3 = (FakeS3) path.getFileSystem(conf);
    }

    private static Iterator<String> actions() {
        return List.of("one", "zwölf").iterator();
    }

    private void write() throws IOException {
        store.write(path, actions(), false, conf);
    }

    private static FakeS3.Close fails(IOException error) {
        return create -> {
            throw error;
        };
    }

    private static FakeS3.Close failsAfterwards(IOException error) {
        return create -> {
            create.now();
            throw error;
        };
    }

    private FakeS3.Close losesTo(byte[] rival, IOException error) {
        return create -> {
            s3.files.put(NAME, rival);
            throw error;
        };
    }

    static Stream<IOException> failures() {
        return Stream.of(
                new SocketTimeoutException("no answer"),
                new IOException("500"),
                new IOException("409 ConditionalRequestConflict"),
                // The completion of a multipart upload, once more, after the first had been applied.
                new FileNotFoundException("NoSuchUpload"),
                new org.apache.hadoop.fs.FileAlreadyExistsException("seen before the PUT"));
    }

    @Test
    void aCommitIsOneConditionalPutOfAllItsLines() throws IOException {
        write();

        assertArrayEquals(OURS, s3.files.get(NAME));
        assertEquals(1, s3.conditional);
        assertEquals(0, s3.plain);
        assertEquals(0, s3.opened);
    }

    @Test
    void anotherWritersCommitIsLeftAloneAndNamed() {
        s3.files.put(NAME, THEIRS);

        FileAlreadyExistsException taken = assertThrows(FileAlreadyExistsException.class, this::write);

        assertArrayEquals(THEIRS, s3.files.get(NAME));
        assertEquals(path.toString(), taken.getFile());
        assertEquals(1, s3.conditional);
    }

    @ParameterizedTest
    @MethodSource("failures")
    void aFailureBehindWhichOurBytesStandIsOurCommit(IOException failure) throws IOException {
        s3.closes.add(failsAfterwards(failure));

        write();

        assertArrayEquals(OURS, s3.files.get(NAME));
        assertEquals(1, s3.conditional);
    }

    @ParameterizedTest
    @MethodSource("failures")
    void aFailureBehindWhichOtherBytesStandIsAnothersCommit(IOException failure) {
        s3.closes.add(losesTo(THEIRS, failure));

        assertThrows(FileAlreadyExistsException.class, this::write);

        assertArrayEquals(THEIRS, s3.files.get(NAME));
    }

    @ParameterizedTest
    @MethodSource("failures")
    void aFailureBehindWhichNothingStandsIsRepeated(IOException failure) throws IOException {
        s3.closes.add(fails(failure));
        s3.closes.add(fails(new IOException("once more")));

        write();

        assertArrayEquals(OURS, s3.files.get(NAME));
        assertEquals(3, s3.conditional);
    }

    @Test
    void aFirstPutThatArrivesLateIsRecognisedByTheNext() throws IOException {
        s3.closes.add(fails(new SocketTimeoutException("still under way")));
        s3.closes.add(create -> {
            s3.files.put(NAME, OURS);
            create.now();
        });

        write();

        assertArrayEquals(OURS, s3.files.get(NAME));
        assertEquals(2, s3.conditional);
    }

    @Test
    void whatNeverArrivesIsUnknownAndNotRefused() {
        for (int attempt = 0; attempt < 20; attempt++) {
            s3.closes.add(fails(new IOException("attempt " + attempt)));
        }

        IOException unknown = assertThrows(IOException.class, this::write);

        assertSame(IOException.class, unknown.getClass());
        assertTrue(unknown.getMessage().startsWith("It is unknown whether " + path), unknown.getMessage());
        assertEquals(4, s3.conditional);
    }

    @Test
    void nothingIsClaimedWhenTheFileCannotBeReadBack() {
        IOException answer = new IOException("no answer");
        s3.closes.add(failsAfterwards(answer));
        s3.reads.add(new IOException("403"));

        IOException unknown = assertThrows(IOException.class, this::write);

        assertSame(IOException.class, unknown.getClass());
        assertTrue(unknown.getMessage().startsWith("It is unknown whether " + path), unknown.getMessage());
        assertEquals("403", unknown.getCause().getMessage());
        assertSame(answer, unknown.getCause().getSuppressed()[0]);
        assertEquals(1, s3.conditional);
    }

    @Test
    void aFileThatBeginsWithOurBytesOrIsTheirBeginningIsNotOurs() {
        for (String other : List.of("one\nzwölf\nmore\n", "one\n", "")) {
            s3.files.put(NAME, other.getBytes(StandardCharsets.UTF_8));

            assertThrows(FileAlreadyExistsException.class, this::write);
        }
    }

    @Test
    void anInterruptedCommitIsNeitherReadBackNorRepeated() {
        s3.closes.add(fails(new InterruptedIOException("cancelled")));

        assertThrows(InterruptedIOException.class, this::write);

        assertEquals(0, s3.opened);
        assertEquals(1, s3.conditional);
    }

    @Test
    void anInterruptEndsTheWaitForTheNextAttempt() {
        s3.closes.add(fails(new IOException("409")));
        Thread writer = Thread.currentThread();
        Thread interrupter = new Thread(() -> {
            while (writer.getState() != Thread.State.TIMED_WAITING) {
                Thread.onSpinWait();
            }
            writer.interrupt();
        });
        interrupter.start();

        assertThrows(InterruptedIOException.class, this::write);

        assertTrue(Thread.interrupted());
        assertEquals(1, s3.conditional);
    }

    @Test
    void aStreamThatFailsIsAbortedAndNeverClosed() {
        s3.write = new IOException("a part was refused");

        assertThrows(IOException.class, this::write);
        assertThrows(IOException.class, () -> store.write(path, actions(), true, conf));

        assertEquals(0, s3.closed);
        assertEquals(5, s3.aborted);
        assertFalse(s3.files.containsKey(NAME));
    }

    @Test
    void actionsThatFailHalfwayOpenNothing() {
        Iterator<String> broken = Stream.of("one", "two").map(line -> {
            if (line.equals("two")) {
                throw new IllegalStateException("no more");
            }
            return line;
        }).iterator();

        assertThrows(IllegalStateException.class, () -> store.write(path, broken, false, conf));

        assertEquals(0, s3.conditional);
    }

    @Test
    void anOverwriteReplacesWhatIsThere() throws IOException {
        s3.files.put(NAME, THEIRS);

        store.write(path, actions(), true, conf);

        assertArrayEquals(OURS, s3.files.get(NAME));
        assertEquals(0, s3.conditional);
    }

    @Test
    void aFileSystemWithoutTheConditionIsRefused(@TempDir java.nio.file.Path folder) {
        Path local = new Path(folder.resolve(NAME).toUri());
        conf.set("fs.file.impl", "org.apache.hadoop.fs.LocalFileSystem");

        assertThrows(UnsupportedOperationException.class, () -> store.write(local, actions(), false, conf));

        assertFalse(Files.exists(folder.resolve(NAME)));
    }

    @Test
    void aBucketIsAskedOnceWhetherItHonoursTheCondition() throws IOException {
        aFreshBucket();

        write();
        assertEquals(2, s3.conditional);
        store.write(new Path(path.getParent(), "00000000000000000008.json"), actions(), false, conf);

        assertEquals(3, s3.conditional);
    }

    @Test
    void aBucketThatDoesNotHonourTheConditionIsRefused() throws IOException {
        aFreshBucket();
        s3.honours = false;

        IllegalStateException refused = assertThrows(IllegalStateException.class, this::write);

        assertTrue(refused.getMessage().contains("ignores If-None-Match"), refused.getMessage());
        assertArrayEquals(OURS, s3.files.get(NAME));
    }

    @Test
    void aBucketThatGaveNoAnswerIsAskedAgain() throws IOException {
        aFreshBucket();
        s3.closes.add(FakeS3.Create::now);
        s3.closes.add(fails(new IOException("503")));

        write();
        store.write(new Path(path.getParent(), "00000000000000000008.json"), actions(), false, conf);

        assertEquals(4, s3.conditional);
    }

    @Test
    void aCommitAfterItsTimeIsNotWritten() {
        conf.setLong(ConditionalS3LogStore.BEFORE, System.currentTimeMillis());

        IOException late = assertThrows(IOException.class, this::write);

        assertTrue(late.getMessage().contains("isn't written"), late.getMessage());
        assertEquals(0, s3.conditional);
    }

    @Test
    void noHalfFileIsEverSeen() {
        assertFalse(store.isPartialWriteVisible(path, conf));
    }
}
